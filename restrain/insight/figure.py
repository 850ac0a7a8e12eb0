"""Curves over depth as an SVG that needs nothing else: small multiples, one panel a quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from restrain.insight.quantities import QUANTITIES, Quantity

WIDTH, HEIGHT, MARGIN = 340, 190, 44  # of a panel, pixels
COLUMNS = 3
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#333}.title{font-weight:600;font-size:12px}"
    ".axis{stroke:#bbb;fill:none}.curve{fill:none;stroke-width:1.5}"
)

Curves = Mapping[str, Sequence[float | None]]  # quantity -> a value a join


def figure(title: str, series: Mapping[str, Curves]) -> str:
    """An SVG document: each series (a network) is a curve over its joins in each panel that it has values for."""
    shown = [q for q in QUANTITIES if any(_finite(curves.get(q.name, ()), q.log) for curves in series.values())]
    rows = -(-len(shown) // COLUMNS)
    width, top = COLUMNS * WIDTH, 52
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + rows * HEIGHT}" width="{width}">',
        f"<style>{STYLE}</style>",
        f'<rect width="100%" height="100%" fill="#fff"/><text x="10" y="20" class="title">{escape(title)}</text>',
    ]
    for n, name in enumerate(series if len(series) > 1 else ()):
        colour, x = COLOURS[n % len(COLOURS)], 10 + 220 * n
        parts.append(f'<path d="M{x} 36h18" class="curve" stroke="{colour}"/><text x="{x + 24}" y="40">')
        parts.append(f"{escape(name)}</text>")
    for n, quantity in enumerate(shown):
        x, y = n % COLUMNS * WIDTH, top + n // COLUMNS * HEIGHT
        curves = [curves.get(quantity.name, ()) for curves in series.values()]
        parts.append(f'<g transform="translate({x} {y})">{_panel(quantity, curves)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(quantity: Quantity, curves: Sequence[Sequence[float | None]]) -> str:
    every = [v for values in curves for v in _finite(values, quantity.log)]
    scale = math.log10 if quantity.log else float
    low, high = scale(min(every)), scale(max(every))
    if high - low < 1e-9:
        low, high = max(low - 0.5, 0.0) if low >= 0.0 and not quantity.log else low - 0.5, high + 0.5
    longest = max(len(values) for values in curves)
    right, bottom = WIDTH - 12, HEIGHT - 26

    def place(depth: int, value: float) -> str:
        x = MARGIN + (right - MARGIN) * depth / max(1, longest - 1)
        return f"{x:.1f} {bottom - (bottom - 24) * (scale(value) - low) / (high - low):.1f}"

    ends = [10**low, 10**high] if quantity.log else [low, high]
    parts = [
        f'<text x="{MARGIN}" y="14" class="title">{escape(quantity.title)}{" (log)" if quantity.log else ""}</text>',
        f'<path class="axis" d="M{MARGIN} 24V{bottom}H{right}"/>',
        f'<text x="{MARGIN - 4}" y="{bottom}" text-anchor="end">{ends[0]:.3g}</text>',
        f'<text x="{MARGIN - 4}" y="32" text-anchor="end">{ends[1]:.3g}</text>',
        f'<text x="{MARGIN}" y="{bottom + 14}">1</text>',
        f'<text x="{right}" y="{bottom + 14}" text-anchor="end">join {longest}</text>',
    ]
    for n, values in enumerate(curves):
        known = [(depth, v) for depth, value in enumerate(values) for v in _finite([value], quantity.log)]
        # A join without a value breaks the curve: nothing is drawn that was not read.
        for _, run in groupby(enumerate(known), key=lambda one: one[1][0] - one[0]):
            points = " L".join(place(depth, value) for _, (depth, value) in run)
            parts.append(f'<path class="curve" stroke="{COLOURS[n % len(COLOURS)]}" d="M{points}"/>')
    return "".join(parts)


def _finite(values: Sequence[float | None], log: bool) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v) and (v > 0 or not log)]
