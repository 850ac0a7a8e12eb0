"""``restrain export``: a run's network as a file for elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder (its BEST is used) or a checkpoint.")]
FORMS = ("safetensors", "timm", "onnx", "torch.export")
WEIGHTS = ("auto", "ema", "raw")


def export(
    run: Run,
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(FORMS)}.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file to write.", show_default="RUN.ENDING")
    ] = None,
    weights: Annotated[str, typer.Option(help="auto: the moving average where the run keeps one; ema; raw.")] = "auto",
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Also from a run that is not finished.")] = False,
) -> None:
    """Write a run's network, read it back, compare its logits, and describe it in a JSON file beside it."""
    from restrain.errors import UserError, nearest

    for name, value, known in (("--to", to, FORMS), ("--weights", weights, WEIGHTS)):
        if value not in known:
            raise UserError(f"{name} {value}: it is one of {', '.join(known)}.{nearest(value, known)}")
    from restrain.training.export import export as written

    found = written(run, to, out, weights, unfinished)
    for notice in found.notices:
        typer.echo(notice, err=True)
    typer.echo(f"{found.path}: {found.weights} of {found.checkpoint}")
    typer.echo(f"read back and run on the same inputs: logits differ by {found.difference:.3g} at most")
    typer.echo(f"{found.sidecar}: preprocessing, classes, where it comes from")
