"""Fills the tables of memory in docs/parallel.md and docs/depth.md from the results of their benchmarks.

``python docs/memory_tables.py``, after ``benchmarks/layout_memory.py`` and ``benchmarks/remat.py``, each with
``--json benchmarks/results/NAME.json``. tests/docs/test_memory_tables.py holds the pages to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def circumstances(benchmark: str, found: dict[str, Any]) -> str:
    """The command, and what it ran on."""
    machine = found["hardware"]
    cores = f"{machine['cores']} cores of an {machine['cpu']}, shared with other work"
    return f"`python benchmarks/{benchmark}.py`, torch {found['versions']['torch']}, {cores}, {found['started'][:10]}."


PARTS = ("building", "optimizer", "saving", "loading")


def layouts(found: dict[str, Any]) -> Iterator[str]:
    """What a rank holds, predicted and measured, and how far its memory grows on the way."""
    rows = []
    for name, row in found["results"].items():
        mb = {key: f"{value / 1e6:,.0f}" for key, value in row.items() if isinstance(value, int)}
        over = {part: row[f"growth_{part}"] > row[f"may_{part}"] for part in PARTS}
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


# Marker -> the page, the results, and what is written between its marks.
TABLES: dict[str, tuple[str, str, Callable[[dict[str, Any]], Iterator[str]]]] = {
    "memory": ("parallel.md", "layout_memory.json", layouts),
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
    _, _, after = rest.partition(end)
    body = "".join(write(json.loads((RESULTS / results).read_text())))
    return path, f"{before}{begin}\n{body}\n{end}{after}"


def main() -> None:
    for marker in TABLES:
        path, text = filled(marker)
        path.write_text(text)
        print(f"written: {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
