"""``restrain runs``: what lies in a folder of runs, and how each of them stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from restrain.run.summary import Summary

Top = Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look, at any depth; a run folder is fine too.")]
KEYS = ("started", "name", "recipe", "state", "best")


def runs(
    top: Top = Path("runs"),
    sort: Annotated[str, typer.Option(help=f"By {', '.join(KEYS)}.")] = "started",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead of a table.")] = False,
) -> None:
    """List runs: recipe, what differs from it, state, best result, and how it compares with what was expected."""
    from restrain.cli.tables import show_table
    from restrain.errors import UserError, nearest
    from restrain.run.numbers import strict
    from restrain.run.summary import find_runs, summarise

    if sort not in KEYS:
        raise UserError(f"--sort {sort}: runs are sorted by {', '.join(KEYS)}.{nearest(sort, KEYS)}")
    if not top.is_dir():
        raise UserError(
            f"There is no folder {top}. Runs are in runs/ below where they were started, or where --run said."
        )
    found = [summarise(path) for path in find_runs(top)]
    found.sort(key=lambda one: _key(one, sort), reverse=sort == "best")
    if as_json:
        typer.echo(json.dumps([strict(one.as_dict()) for one in found], indent=2, ensure_ascii=False))
    elif not found:
        typer.echo(f"There are no runs in {top}.")
    else:
        headers = ("run", "recipe", "changed", "state", "best", "last", "against expected")
        show_table(headers, [_row(one, top) for one in found])


def _key(one: Summary, sort: str) -> tuple:
    if sort == "best":
        return (one.best["value"] if one.best else float("-inf"),)
    return {
        "started": (one.started, str(one.path)),
        "name": (str(one.path),),
        "recipe": (one.recipe, one.started),
        "state": (one.state, one.started),
    }[sort]


def _row(one: Summary, top: Path) -> tuple[str, ...]:
    best, last = "-", "-"
    if one.best:
        best = f"{one.best['metric']} {one.best['value']:.4g} (step {one.best['step']:,})"
        last = f"{one.metrics[one.best['metric']]:.4g}" if one.best["metric"] in one.metrics else "-"
    verdict = "-"
    if one.verdict is not None:
        missed = one.verdict["word"] == "missed"
        verdict = f"missed by {abs(one.verdict['short']):.2f}" if missed else one.verdict["word"]
    name = str(one.path) if one.path == top else str(one.path.relative_to(top))
    return (name, one.recipe, " ".join(one.changes) or "-", one.told, best, last, verdict)
