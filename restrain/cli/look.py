"""``restrain look``: what the network will see, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restrain.cli.show import Overrides

Name = Annotated[str, typer.Argument(metavar="NAME|FILE|RUN", help="A recipe, or a run folder.")]
COLUMNS = 4


def look(
    recipe: Name,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The picture to write.")] = Path("look.png"),
    count: Annotated[int, typer.Option(min=1, max=256, help="Samples.")] = 16,
    step: Annotated[int, typer.Option(min=0, help="Step whose samples are shown, from 0.")] = 0,
) -> None:
    """Write a picture of a step's training samples: untouched, and as the network will see them, with their labels."""
    from restrain.errors import UserError
    from restrain.insight.grid import grid
    from restrain.recipe import load
    from restrain.training.look import look as looked

    lock = Path(recipe) / "recipe.lock.yaml"
    resolved = load(str(lock) if lock.is_file() else recipe, overrides or [])
    found = looked(resolved.recipe, count, step)
    picture = grid(found.tiles, COLUMNS, min(224, max(96, found.side)))
    if out.is_dir():
        raise UserError(f"{out} is a folder. Name the picture to write with -o, such as {out / 'look.png'}.")
    out.write_bytes(picture)
    typer.echo(f"{out}: {len(found.tiles)} samples of step {found.step} (epoch {found.epoch}), {found.side} pixels")
