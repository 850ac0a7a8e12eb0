"""``restrain checkpoint``: what a checkpoint holds, whether it is whole, and where two differ."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from restrain.run.checkpoint import Reader

app = typer.Typer(help="Look into checkpoints.", no_args_is_help=True)

Where = Annotated[
    Path, typer.Argument(metavar="RUN[@STEP]|DIR", help="A run folder (its newest), or a checkpoint's folder.")
]
MOST = 12  # lines of a listing that is not asked for whole


@app.callback()
def _group() -> None:
    pass


@app.command("inspect")
def inspect(
    where: Where,
    every: Annotated[bool, typer.Option("--all", help="List every tensor.")] = False,
) -> None:
    """Say what a checkpoint holds: step, layout it was made in, files, tensors by kind."""
    from restrain.cli.tables import show_facts
    from restrain.insight.units import size

    with _open(where) as reader:
        tensors, files = reader.manifest["tensors"], reader.manifest["files"]
        kinds: Counter[str] = Counter()
        amounts: Counter[str] = Counter()
        for name in tensors:
            kind = name.rpartition("|")[2]
            kinds[kind] += 1
            amounts[kind] += math.prod(reader.shape(name)) * reader.dtype(name).itemsize
        made = ", ".join(f"{key} {value}" for key, value in reader.placement.items() if value != "")
        scalars = reader.scalars
        told = [f"step {reader.step}, attempt {reader.manifest['attempt']}, by {reader.world} process(es): {made}"]
        told += [f"{len(scalars['interventions'])} intervention(s)"] if scalars.get("interventions") else []
        held = [f"{kind}: {kinds[kind]} tensors, {size(amounts[kind])}" for kind in kinds]
        listed = sorted(tensors) if every else []
        rows = [
            f"{n}: {list(reader.shape(n))} {reader.manifest['tensors'][n]['dtype']}, {_cut(reader, n)}" for n in listed
        ]
        lacking = {name: _lack(reader.path / name, facts["size"]) for name, facts in files.items()}
        # What is not as it should be is never among those that are cut off.
        sizes = [f"{n}: {size(files[n]['size'])}{lacking[n]}" for n in sorted(files, key=lambda n: (not lacking[n], n))]
        more = len(sizes) - MOST
        if more > 0 and not every:
            sizes = [*sizes[:MOST], f"and {more} more (--all)"]
        show_facts(str(reader.path), [("made", told), ("tensors", [*held, *rows]), ("files", sizes)])


def _lack(path: Path, wanted: int) -> str:
    """What is wrong with a file as far as its size tells; empty for nothing."""
    if not path.is_file():
        return ", missing"
    there = path.stat().st_size
    return "" if there == wanted else f", damaged: {there:,} bytes of {wanted:,}"


def _cut(reader: Reader, name: str) -> str:
    slices = reader.manifest["tensors"][name]["slices"]
    return "whole" if len(slices) == 1 else f"in {len(slices)} slices"


@app.command("verify")
def verify(where: Where) -> None:
    """Read every byte and compare it with the manifest's hashes; exit code 1 and the file's name where one differs."""
    from restrain.errors import WorldError
    from restrain.insight.units import size
    from restrain.run.manifest import Damaged
    from restrain.run.manifest import verify as verified

    paths = _all(where)
    bad = []
    for path in paths:
        try:
            body = verified(path)
        except Damaged as error:
            bad.append(str(error))
            typer.echo(f"{path}: {error}")
            continue
        total = sum(facts["size"] for facts in body["files"].values())
        typer.echo(f"{path}: whole, step {body['step']}, {len(body['tensors'])} tensors, {size(total)}")
    if bad:
        raise WorldError(
            f"{len(bad)} of {len(paths)} checkpoint(s) of {where} cannot be used. A run goes on from the newest whole "
            f"one."
        )


@app.command("diff")
def diff(one: Where, other: Where) -> None:
    """Say where two checkpoints differ, tensor by tensor, whatever ranks saved them; exit code 1 where they do."""
    from restrain.cli.tables import show_table

    rows, equal = [], 0
    with _open(one) as a, _open(other) as b:
        names = dict.fromkeys([*a.names(), *b.names()])
        for name in names:
            found = _difference(a, b, name)
            if found is None:
                equal += 1
            else:
                rows.append((name, *found))
        changed = [key for key in a.scalars if a.scalars.get(key) != b.scalars.get(key)]
    rows.sort(key=lambda row: -float(row[1]) if row[1] != "-" else -math.inf)
    if rows:
        show_table(("tensor", "largest difference", "relative", ""), rows[:MOST])
        if len(rows) > MOST:
            typer.echo(f"and {len(rows) - MOST} more")
    typer.echo(
        f"{equal} of {len(names)} tensors are equal to the bit"
        + (f"; scalars that differ: {', '.join(changed)}" if changed else "")
    )
    if rows:
        raise typer.Exit(1)


def _difference(a: Reader, b: Reader, name: str) -> tuple[str, str, str] | None:
    """(largest difference, relative to the largest value, what is wrong); None where they are equal to the bit."""
    import torch

    for reader in (a, b):
        if name not in reader.manifest["tensors"]:
            return "-", "-", f"not in {reader.path}"
    if a.shape(name) != b.shape(name):
        return "-", "-", f"{list(a.shape(name))} and {list(b.shape(name))}"
    x, y = a.read(name), b.read(name)
    if x.dtype == y.dtype and torch.equal(x, y):
        return None
    far = (x.double() - y.double()).abs().max().item()
    largest = max(x.double().abs().max().item(), y.double().abs().max().item())
    kinds = "" if x.dtype == y.dtype else f"{x.dtype} and {y.dtype}"
    return f"{far:.3g}", f"{far / largest if largest else math.inf:.3g}", kinds


def _open(where: Path) -> Reader:
    from restrain.run.checkpoint import Reader

    return Reader(_all(where)[-1])


def _all(where: Path) -> list[Path]:
    """The checkpoint that is named, or those of a run, oldest first. UserError where there is none."""
    from restrain.errors import UserError
    from restrain.run.manifest import MANIFEST, saved

    run, at, step = str(where).rpartition("@")
    named = Path(run) / "checkpoints" / f"step-{step}"
    for one in (where, *([named] if at else [])):
        if (one / MANIFEST).exists():
            return [one]
    folder = where / "checkpoints" if (where / "checkpoints").is_dir() else where
    found = [path for _, path in saved(folder)][::-1]
    if not found:
        raise UserError(
            f"{where} is neither a run folder with checkpoints nor a checkpoint. Name runs/.../checkpoints/step-N, its "
            f"run, or RUN@N."
        )
    return found
