"""Writes the generated parts of docs/parallel.md: the tables of parity and of checkpoints between layouts.

``python docs/parallel.py``, after ``make parity``. tests/docs/test_docs.py holds the page to benchmarks/results/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("parallel.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
KINDS = {  # of a difference: the column
    "loss": "loss",
    "norm": "gradient norm",
    "eval": "evaluation",
    "param": "weights",
    "buffer": "statistics",
    "momentum_buffer": "momentum",
    "ema": "EMA",
}


def page() -> str:
    """The whole page, what stands between each pair of markers made anew."""
    text = PAGE.read_text()
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise LookupError(f"{PAGE} has no {begin} ... {end}")
        report = json.loads((RESULTS / f"{name}.json").read_text())
        text = f"{before}{begin}\n\n{''.join(table(report))}\n{end}{after}"
    return text


def parity(report: dict[str, Any]) -> Iterator[str]:
    """A row a network and layout: the worst of its cells."""
    results, rows = report["results"], report["rows"]
    yield _made(report, f"{len(rows)} of {results['cells']} cells")
    yield _header(["network", "layout", "ranks", "precision", "cells", *KINDS.values()])
    for (model, layout), cells in _grouped(rows, "model", "layout"):
        worst = [max(cell["differences"].get(kind, -1.0) for cell in cells) for kind in KINDS]
        shown = ["" if far < 0 else _power(far) for far in worst]
        one = cells[0]
        yield _line([model, layout, one["ranks"], one["precision"], len(cells), *shown])
    bounds = ", ".join(f"{bound:.0e} in {precision}" for precision, bound in results["bounds"].items())
    yield f"\nHeld to {bounds}. Not offered, and refused by the command (exit code 2):\n\n"
    yield from (f"* {one['what']}: “{one['said']}”\n" for one in results["refused"])


def resume(report: dict[str, Any]) -> Iterator[str]:
    """A row a layout and world."""
    rows = report["rows"]
    yield _made(report, f"{len(rows)} of {report['results']['rows']} rows")
    yield _header(["layout", "ranks", "trained", "precision", "saves", "losses after loading", "tensors after loading"])
    for row in rows:
        tensors = max(far for kind, far in row["loads"].items() if kind not in ("loss", "eval", "norm"))
        found = map(_power, (max(row["saves"].values()), row["loads"]["loss"], tensors))
        yield _line([row["layout"], row["world"], row["subject"], row["precision"], *found])


TABLES: dict[str, Callable[[dict[str, Any]], Iterable[str]]] = {"parity": parity, "resume": resume}


def _made(report: dict[str, Any], how_many: str) -> str:
    minutes, jobs = report["results"]["minutes"], report["settings"]["jobs"]
    hardware, versions = report["hardware"], report["versions"]
    at_once = f", {jobs} runs at a time" if jobs > 1 else ""
    return (
        f"{how_many} in {minutes:.0f} minutes{at_once} on {hardware['cores']} cores of {hardware['cpu']}, torch "
        f"{versions['torch']}, {report['started'][:10]}.\n\n"
    )


def _grouped(rows: Iterable[dict[str, Any]], *keys: str) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(found.items())


def _power(far: float) -> str:
    return "0" if far == 0 else f"{far:.0e}"


def _header(columns: list[str]) -> str:
    return _line(columns) + f"{'|---' * len(columns)}|\n"


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
