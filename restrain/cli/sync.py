"""``restrain sync``: send runs to Weights & Biases from where the network is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Run folders, finished or not.")]


def sync(runs: Runs) -> None:
    """Send what wandb's server lacks of each run's journal: one run, one history, however often it was started.

    The journal is what is sent, up to the newest checkpoint of a run that is not finished, and the server says how far
    it is: a second sync sends nothing twice.
    """
    from restrain.run.sending import send

    for run in runs:
        sent = send(run)
        steps = f"{sent.steps:,} steps up to step {sent.last:,}" if sent.steps else f"nothing new (step {sent.last:,})"
        typer.echo(
            f"{run}: sent {steps} as {sent.run_id} of project {sent.project}{f', {sent.url}' if sent.url else ''}"
        )
