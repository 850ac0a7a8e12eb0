"""``restrain evaluate``: the exact metrics of a run's best checkpoint, of any one, or of a network without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from restrain.cli.show import Overrides

if TYPE_CHECKING:
    from restrain.training.evaluate_run import Evaluation

What = Annotated[
    str,
    typer.Argument(
        metavar="RUN|CHECKPOINT|NAME|timm/NAME", help="A run (its BEST), a checkpoint, a recipe with weights."
    ),
]
SHOWN = 5  # of the worst classes, and of the most confused pairs


def evaluate(
    what: What,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
) -> None:
    """Evaluate a run's weights (its EMA where it has one), exactly: metrics, classes, calibration, confusions."""
    from restrain.training.evaluate_run import evaluate_network, evaluate_run

    network = not Path(what).is_dir() and (
        what.startswith("timm/") or "/" not in what or what.endswith((".yaml", ".yml"))
    )
    found = evaluate_network(what, overrides or []) if network else evaluate_run(Path(what), overrides or [])
    for notice in found.notices:
        typer.echo(notice, err=True)
    typer.echo(f"{found.source}: {found.weights}, {found.what}")
    for name, value in found.metrics.items():
        typer.echo(f"{name} {value:.6g}")
    for line in _told(found):
        typer.echo(line)
    if out is not None:
        told = {"source": found.source, "weights": found.weights, "data": found.what, "metrics": found.metrics}
        classes = found.confusion.as_dict(found.classes) if found.confusion is not None else {}
        out.write_text(json.dumps(told | classes, ensure_ascii=False) + "\n")


def _told(found: Evaluation) -> list[str]:
    """The summary for a person."""
    names, confusion = found.classes, found.confusion
    if confusion is None:
        return []
    lines = [f"calibration error {confusion.calibration_error:.2f} % (15 bins)"]
    worst = [one for one in confusion.per_class()[:SHOWN] if one[1] < one[2]]
    if worst:
        shown = ", ".join(f"{names[k]} {100 * right / samples:.1f} % of {samples}" for k, right, samples in worst)
        lines.append(f"worst classes: {shown}")
    confused = [f"{names[label]} as {names[taken]} ({count})" for label, taken, count in confusion.pairs(SHOWN)]
    pairs = ", ".join(confused)
    return [*lines, f"taken for another: {pairs}"] if pairs else lines
