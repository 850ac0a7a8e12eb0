"""``restrain lesion``: what a trained network does without some of its blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from restrain.training.lesion import Lesioned

KINDS = ("removed", "swapped", "prefix", "suffix")


def lesion(
    run: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run (its BEST), or one of its checkpoints.")],
    kinds: Annotated[
        str, typer.Option(metavar="KIND[,KIND]", help=f"What is done to it: {', '.join(KINDS)}.")
    ] = ",".join(KINDS),
    samples: Annotated[
        int | None, typer.Option(min=1, help="Evaluate on so many samples at most; default: all.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
) -> None:
    """Evaluate a run's network with each block removed, with neighbours swapped, with its first or last blocks cut."""
    from restrain.cli.tables import show_table
    from restrain.errors import UserError, nearest
    from restrain.training.lesion import lesion as lesioned

    chosen = [kind.strip() for kind in kinds.split(",")]
    for kind in chosen:
        if kind not in KINDS:
            raise UserError(f"--kinds {kind}: the kinds are {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    found = lesioned(run, chosen, samples)
    for notice in found.notices:
        typer.echo(notice, err=True)
    metrics = [name for name in ("top1", "loss") if name in found.whole]
    first = metrics[0]
    whole = ", ".join(f"{name} {found.whole[name]:.4g}" for name in metrics)
    typer.echo(f"{found.source}: {found.weights}, {found.samples:,} samples, whole: {whole}")
    rows = [
        (
            *(one.lesion.kind, one.lesion.label),
            *(f"{one.score[name]:.4g}" for name in metrics),
            f"{one.score[first] - found.whole[first]:+.4g}",
        )
        for one in found.lesions
    ]
    if rows:
        show_table(("lesion", "blocks", *metrics, f"change of {first}"), rows)
    else:
        typer.echo("the shapes allow none of these lesions")
    if out is not None:
        out.write_text(json.dumps(_plain(found), indent=1) + "\n")


def _plain(found: Lesioned) -> dict:
    from restrain.run.numbers import strict

    told = {"source": found.source, "weights": found.weights, "samples": found.samples, "whole": found.whole}
    return strict(told | {"lesions": [vars(one.lesion) | one.score for one in found.lesions]})
