"""``restrain evaluate``: the exact metrics of a run's best checkpoint, or of any one."""

from pathlib import Path
from typing import Annotated

import typer

from restrain.cli.show import Overrides


def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="DIR|CHECKPOINT", help="A run folder (its BEST is used) or a checkpoint.")
    ],
    overrides: Overrides = None,
) -> None:
    """Evaluate a run's weights (its EMA where it has one)."""
    from restrain.training.evaluate_run import evaluate_run

    found = evaluate_run(path, overrides or [])
    for notice in found.notices:
        typer.echo(notice, err=True)
    typer.echo(f"{found.checkpoint}: {found.weights}, {found.what}")
    for name, value in found.metrics.items():
        typer.echo(f"{name} {value:.6g}")
