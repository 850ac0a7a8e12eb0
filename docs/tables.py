"""Fills the measured tables of docs/parallel.md and docs/depth.md from benchmarks/results/.

``python docs/tables.py``, after ``make parity`` and the benchmarks that are named below the tables, each with
``--json benchmarks/results/NAME.json``. tests/docs/test_tables.py holds the pages to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
KINDS = {  # of a difference: the column
    "loss": "loss",
    "norm": "gradient norm",
    "eval": "evaluation",
    "param": "weights",
    "buffer": "statistics",
    "momentum_buffer": "momentum",
    "ema": "EMA",
}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def circumstances(benchmark: str, found: dict[str, Any]) -> str:
    """The command, and what it ran on."""
    machine = found["hardware"]
    cores = f"{machine['cores']} cores of an {machine['cpu']}, shared with other work"
    return f"`python benchmarks/{benchmark}.py`, torch {found['versions']['torch']}, {cores}, {found['started'][:10]}."


def parity(report: dict[str, Any]) -> Iterator[str]:
    """A row a network and layout: the worst of its cells."""
    results, rows = report["results"], report["rows"]
    yield _made(report, f"{len(rows)} of {results['cells']} cells")
    shown = []
    for (model, layout), cells in _grouped(rows, "model", "layout"):
        worst = [max(cell["differences"].get(kind, -1.0) for cell in cells) for kind in KINDS]
        one = cells[0]
        told = ["" if far < 0 else _power(far) for far in worst]
        shown.append([model, layout, one["ranks"], one["precision"], len(cells), *told])
    yield table(("network", "layout", "ranks", "precision", "cells", *KINDS.values()), shown)
    bounds = ", ".join(f"{bound:.0e} in {precision}" for precision, bound in results["bounds"].items())
    yield f"\nHeld to {bounds}. Not offered, and refused by the command (exit code 2):\n\n"
    yield from (f"* {one['what']}: “{one['said']}”\n" for one in results["refused"])


def resume(report: dict[str, Any]) -> Iterator[str]:
    """A row a layout and world."""
    rows = report["rows"]
    yield _made(report, f"{len(rows)} of {report['results']['rows']} rows")
    shown = []
    for row in rows:
        tensors = max(far for kind, far in row["loads"].items() if kind not in ("loss", "eval", "norm"))
        found = map(_power, (max(row["saves"].values()), row["loads"]["loss"], tensors))
        shown.append([row["layout"], row["world"], row["subject"], row["precision"], *found])
    yield table(
        ("layout", "ranks", "trained", "precision", "saves", "losses after loading", "tensors after loading"), shown
    )


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


PARTS = ("building", "optimizer", "saving", "loading")


def layouts(found: dict[str, Any]) -> Iterator[str]:
    """What a rank holds, predicted and measured, and how far its memory grows on the way."""
    rows = []
    for name, row in found["results"].items():
        mb = {key: f"{value / 1e6:,.0f}" for key, value in row.items() if isinstance(value, int)}
        over = {part: row[f"growth_{part}"] > 1.05 * row[f"may_{part}"] for part in PARTS}
        growth = [
            f"{'**' * over[part]}{mb[f'growth_{part}']} of {mb[f'may_{part}']}{'**' * over[part]}" for part in PARTS
        ]
        rows.append([name, mb["predicted"], mb["held"], f"{100 * row['off']:+.1f} %", mb["tensors"], *growth])
    yield table(
        ("GPT-2 (124 M), AdamW, fp32", "predicted", "measured", "off", "tensors", *PARTS),
        rows,
    )
    yield "\nMB of the rank that is furthest off. " + circumstances("layout_memory", found) + "\n"


def remat(found: dict[str, Any]) -> Iterator[str]:
    """What each way to recompute keeps and computes again."""
    names = {"resnet": "ResNet-1202, batch 8", "transformer": "transformer of 1,000 blocks, 4 x 64 tokens"}
    rows = []
    for row in found["rows"]:
        mb = [f"{row[key] / 1e6:,.1f}" for key in ("predicted", "allocated")]
        off = f"{100 * (row['allocated'] / row['predicted'] - 1):+.1f} %"
        same = "equal" if row["equal"] else "**other**"
        rows.append([names[row["family"]], f"`{row['remat']}`", *mb, off, f"x {row['flops_ratio']:.3f}", same])
    yield table(("", "`parallel.remat`", "predicted", "measured", "off", "FLOPs", "gradients, statistics"), rows)
    yield "\nMB of activations. " + circumstances("remat", found) + "\n"


def overhead(found: dict[str, Any]) -> Iterator[str]:
    """A row a layout, with and without clipping: milliseconds a step, and how much the bare loop takes less."""
    rows = []
    for name, row in found["results"].items():
        cells: list[str] = [name]
        for clock in ("wall", "cpu"):
            seconds, above = row[clock]["seconds"], row[clock]["above"]
            cells += [f"{1e3 * seconds[loop]['median']:.1f}" for loop in ("bare", "restrain")]
            cells += [f"{100 * above[loop]:+.1f} %" for loop in ("restrain", "same")]
        rows.append(cells)
    columns = ("bare", "Restrain", "above it", "the same twice")
    yield table(("layout", *columns, *(f"processor: {name.lower()}" for name in columns)), rows)
    yield "\nMilliseconds a step on 2 ranks, by the clock and by the processor's time of rank 0, which other work on "
    yield "the machine does not change; *the same twice* is a bare loop beside another one built alike. "
    yield circumstances("parallel_overhead", found) + "\n"


# Marker -> the page, the results, and what is written between its marks.
TABLES: dict[str, tuple[str, str, Callable[[dict[str, Any]], Iterable[str]]]] = {
    "parity": ("parallel.md", "parity.json", parity),
    "resume": ("parallel.md", "resume.json", resume),
    "memory": ("parallel.md", "layout_memory.json", layouts),
    "overhead": ("parallel.md", "parallel_overhead.json", overhead),
    "remat": ("depth.md", "remat.json", remat),
}


def filled(marker: str) -> tuple[Path, str]:
    """A page with its table as the results have it; as it is where there are none yet."""
    page, results, write = TABLES[marker]
    path = DOCS / page
    text = path.read_text()
    if not (RESULTS / results).exists():
        return path, text
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->\n"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise LookupError(f"{path} has no {begin.strip()} ... {end.strip()}")
    body = "".join(write(json.loads((RESULTS / results).read_text())))
    return path, f"{before}{begin}\n{body}\n{end}{after}"


def main() -> None:
    for marker in TABLES:
        path, text = filled(marker)
        path.write_text(text)
        print(f"written: {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
