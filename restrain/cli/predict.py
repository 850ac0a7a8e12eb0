"""``restrain predict``: what a run's network says of images."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from restrain.training.predict import Prediction

Run = Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder (its BEST is used) or a checkpoint.")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Images, folders of them, or tar shards.")]


def predict(
    run: Run,
    images: Images,
    out: Annotated[Path, typer.Option("-o", "--out", help="A .csv or .jsonl file; - for standard output.")] = Path("-"),
    top: Annotated[int, typer.Option(min=1, help="Classes an image.")] = 5,
    weights: Annotated[str, typer.Option(help="auto: the moving average where the run keeps one; ema; raw.")] = "auto",
) -> int:
    """Predict the classes of images with a run's network; what cannot be read is listed, and leaves with 1."""
    from restrain.errors import UserError

    if str(out) != "-" and out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"-o {out}: name a .csv or a .jsonl file, or - for standard output.")
    from restrain.training.loaded import load_weights
    from restrain.training.predict import predict as predicted

    loaded = load_weights(run, weights)
    for notice in loaded.located.notices:
        typer.echo(notice, err=True)
    found = bad = 0
    with _opened(out) as file:
        write = _jsonl(file) if out.suffix == ".jsonl" else _csv(file, top)
        for one in predicted(loaded, images, top):
            found, bad = found + 1, bad + (one.error is not None)
            write(one)
    if not found:
        raise UserError(f"There is no image in {', '.join(map(str, images))}.")
    unread = f", {bad} of them could not be read" if bad else ""
    typer.echo(f"{found} images{unread}; {loaded.weights} of {loaded.located.checkpoint}", err=True)
    return 1 if bad else 0


@contextmanager
def _opened(out: Path) -> Iterator[IO[str]]:
    if str(out) == "-":
        yield sys.stdout
        return
    with out.open("w", newline="", encoding="utf-8") as file:
        yield file


def _csv(file: IO[str], top: int):
    writer = csv.writer(file)
    columns = [name for rank in range(1, top + 1) for name in (f"class{rank}", f"share{rank}")]
    writer.writerow(["image", *columns, "error"])

    def write(one: Prediction) -> None:
        pairs = [cell for pair in zip(one.classes, one.shares, strict=True) for cell in (pair[0], f"{pair[1]:.6f}")]
        writer.writerow([one.image, *(pairs or [""] * (2 * top)), one.error or ""])

    return write


def _jsonl(file: IO[str]):
    def write(one: Prediction) -> None:
        entry = {"image": one.image, "classes": list(one.classes), "shares": list(one.shares), "error": one.error}
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    return write
