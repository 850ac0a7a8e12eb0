"""``restrain compare``: runs side by side: recipe, results, samples, and where their curves part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from restrain.run.history import Column
    from restrain.run.summary import Summary

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN RUN ...", help="Run folders; the first is compared with each.")
]


def compare(runs: Runs) -> None:
    """Compare runs: what differs in their recipes, what they reached, where their curves part."""
    from restrain.cli.tables import show_table
    from restrain.errors import UserError
    from restrain.run.history import columns, hashes
    from restrain.run.side_by_side import locked_recipe, recipe_differences, short_names
    from restrain.run.summary import summarise

    if len(runs) < 2:
        raise UserError("compare takes two runs or more: restrain compare RUN RUN ...")
    found = [summarise(path) for path in runs]
    for one in found:
        if one.state == "unreadable":
            raise UserError(f"{one.path} cannot be compared: {one.why}. Name run folders; restrain runs lists them.")
    names = short_names(runs)
    curves = [columns(path / "metrics.jsonl") for path in runs]
    _title("recipe")
    show_table(
        ("key", *names),
        recipe_differences([locked_recipe(path) for path in runs]) or [("nothing differs", *[""] * len(runs))],
    )
    _title("results")
    show_table(("", *names), _results(found, curves))
    ledgers = [hashes(path / "ledger.jsonl") for path in runs]
    for name, other, ledger in zip(names[1:], curves[1:], ledgers[1:], strict=True):
        _title(f"{names[0]} and {name}")
        typer.echo(_samples(ledgers[0], ledger))
        for line in _curves(curves[0], other):
            typer.echo(line)


def _title(text: str) -> None:
    typer.echo(f"\n{text}")


def _results(found: list[Summary], curves: list[dict[str, Column]]) -> list[tuple[str, ...]]:
    import numpy as np

    from restrain.run.history import NOT_REPRODUCIBLE

    rows: list[tuple[str, ...]] = [("state", *(one.told for one in found))]
    metrics = [name for name in curves[0] if name.startswith(("eval/", "train/"))]
    metrics = [name for name in metrics if name not in (*NOT_REPRODUCIBLE, "train/lr", "eval/count")]
    for name in metrics:
        if all(name in one for one in curves):
            rows.append((f"last {name}", *(f"{one[name].values[-1]:.6g}" for one in curves)))
    best = [one.best for one in found]
    if any(best):
        cells = (f"{b['metric']} {b['value']:.6g} (step {b['step']:,})" if b else "-" for b in best)
        rows.append(("best", *cells))
    if all("train/samples_per_s" in one for one in curves):
        speeds = (f"{np.median(one['train/samples_per_s'].values):.0f}" for one in curves)
        rows.append(("samples/s, median", *speeds))
    if all("wall" in one for one in curves):
        rows.append(("time of all steps", *(_training_time(one["wall"].values) for one in curves)))
    return rows


def _training_time(wall: Any) -> str:
    from restrain.run.history import clock, training_seconds

    return clock(training_seconds(wall)[-1]) if len(wall) > 1 else "-"


def _samples(one: dict, other: dict) -> str:
    from restrain.run.history import first_difference

    step, last = first_difference(one, other)
    if step is None:
        return f"the same samples in each step up to {last:,}" if last else "no step in common"
    return f"the same samples up to step {step - 1:,}, others from step {step:,} on" if step > 1 else "other samples"


def _curves(one: dict[str, Column], other: dict[str, Column]) -> list[str]:
    from restrain.run.history import NOT_REPRODUCIBLE, SHARE, SPAN, parting

    rows = []
    for name in one:
        if name in (*NOT_REPRODUCIBLE, "eval/count") or name not in other or not name.startswith(("train/", "eval/")):
            continue
        if not set(one[name].steps) & set(other[name].steps):
            rows.append(f"{name}: no step in common")
            continue
        found = parting(one[name], other[name])
        if found.differs_at is None:
            rows.append(f"{name}: bit-equal")
        elif found.parts_at is None:
            rows.append(f"{name}: differs from step {found.differs_at:,} on, but does not part")
        else:
            rows.append(f"{name}: differs from step {found.differs_at:,} on, parts at step {found.parts_at:,}")
    note = f"(parted: means over {SPAN} values more than {100 * SHARE:g} % apart, at all later steps)"
    return [*rows, note] if rows else ["no metric in common"]
