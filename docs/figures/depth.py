"""Draws docs/images/depth.svg from benchmarks/results/depth.json: a training step's time and peak memory over depth.

``python docs/figures/depth.py``, after ``python benchmarks/depth.py --json benchmarks/results/depth.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "results" / "depth.json"
IMAGE = ROOT / "docs" / "images" / "depth.svg"
FAMILIES = ("resnet", "transformer")

WIDTH, HEIGHT, LEFT, TOP, GAP = 320, 170, 62, 30, 80
STYLE = """
text { font: 11px sans-serif; fill: #333 } .axis { stroke: #999; fill: none }
.resnet { stroke: #1f4e79; fill: #1f4e79 } .transformer { stroke: #b5541c; fill: #b5541c }
polyline { stroke-width: 1.6; fill: none !important } .remat { stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .resnet { stroke: #9fd0ff; fill: #9fd0ff }
.transformer { stroke: #ffb37a; fill: #ffb37a } }
"""


def panel(title: str, series: Mapping[str, Sequence[tuple[float, float]]], column: int) -> str:
    """Lines over the number of blocks, from 0 on both axes, each point marked."""
    right = max(x for points in series.values() for x, _ in points)
    top = 1.1 * max(y for points in series.values() for _, y in points)
    lines = []
    for name, points in series.items():
        kind = name.replace(", ", " ")
        placed = [(WIDTH * x / right, HEIGHT - HEIGHT * y / top) for x, y in points]
        lines.append(f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in placed)}"/>')
        lines += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in placed]
    return (
        f'<g transform="translate({LEFT + column * (WIDTH + GAP)},{TOP})">'
        f'<path class="axis" d="M0 0V{HEIGHT}H{WIDTH}"/><text x="0" y="-8">{title}</text>'
        f'<text x="-6" y="8" text-anchor="end">{top:,.3g}</text><text x="-6" y="{HEIGHT}" text-anchor="end">0</text>'
        f'<text x="0" y="{HEIGHT + 16}">0</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 16}" text-anchor="end">{right:,.0f} blocks</text>{"".join(lines)}</g>'
    )


def drawing(results: dict[str, Any]) -> str:
    names = [f"{family}{more}" for family in FAMILIES for more in ("", ", remat")]
    rows = {name: results[name]["depths"] for name in names if name in results}
    seconds = {name: [(row["blocks"], row["seconds"]) for row in found] for name, found in rows.items()}
    memory = {name: [(row["blocks"], row["peak_mb"]) for row in found] for name, found in rows.items()}
    panels = panel("seconds of a step", seconds, 0) + panel("peak memory in MB", memory, 1)
    width, height = LEFT + 2 * (WIDTH + GAP), TOP + HEIGHT + 50
    note = "ResNet (CIFAR sizes) blue, transformer 64 wide orange; broken: activations of a block recomputed (remat)."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{note}">'
        f'<style>{STYLE}</style>{panels}<text x="{LEFT}" y="{height - 8}">{note}</text></svg>\n'
    )


def main() -> None:
    results = json.loads(FIGURES.read_text())["results"]
    IMAGE.write_text(drawing(results))
    print(f"written: {IMAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
