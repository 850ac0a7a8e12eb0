"""``restrain grow``: make a run's network deeper without changing what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restrain.cli.show import Overrides


def grow(
    run: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run (its newest checkpoint), or step-N.")],
    overrides: Overrides = None,
    to: Annotated[str, typer.Option("--to", metavar="MODEL", help="The deeper network, such as cifar_resnet56.")] = "",
    folder: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="The new run's folder.")] = None,
    place: Annotated[
        str, typer.Option(metavar="spread|end", help="New blocks evenly between the old ones, or behind each stage's.")
    ] = "spread",
) -> None:
    """Begin a new run with a deeper network that computes the same: extra blocks are identities, and train on."""
    from restrain.errors import UserError
    from restrain.training.grow import grow as grown

    if not to and not any(word.startswith("model.shape") for word in overrides or []):
        raise UserError(
            "--to is missing: the deeper network's name, such as --to cifar_resnet56; or, where the family takes any "
            "depth, model.shape.depth=24."
        )
    found = grown(run, to, folder, overrides or [], place)
    for notice in found.notices:
        typer.echo(notice, err=True)
    before, after = found.blocks
    typer.echo(f"{found.folder}: {found.name}, grown from {found.start}")
    typer.echo(f"{after} blocks, {before} of them taken over, {after - before} new with branches of zero")
    typer.echo(f"logits differ by 0.0 from those of the shallower network, on {found.rows}")
    typer.echo(f"{found.total - found.step} steps are left; go on with: restrain resume {found.folder}")
