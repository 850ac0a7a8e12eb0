"""What the figures of docs/parallel.md are drawn with: boxes, words and arrows in colours for light and dark pages.

A kind is a class of the style below: ``c0`` to ``c3`` are four colours, ``plain`` has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "images"
LIGHT = ("#1f4e79", "#b5541c", "#2d7d46", "#7a3d8f")
DARK = ("#9fd0ff", "#ffb37a", "#8fdca6", "#dcb0ee")

STYLE = """
text { font: 11px sans-serif; fill: #333 } .small { font-size: 9.5px } .tiny { font-size: 9px }
.head { font-size: 12px; font-weight: bold }
.soft { fill: #777 } .box { fill-opacity: .18; stroke-width: 1 } .thin { fill-opacity: .05; stroke-dasharray: 3 2 }
.plain { fill: none; stroke: #999 } .line { fill: none; stroke: #777 } .dash { stroke-dasharray: 4 3 }
.tip { fill: #777; stroke: none } .full { fill-opacity: .75 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .soft { fill: #aaa } .plain { stroke: #888 }
.line { stroke: #aaa } .tip { fill: #aaa } }
"""


def _colours(values: Iterable[str]) -> str:
    return " ".join(f".c{i} {{ fill: {value}; stroke: {value} }}" for i, value in enumerate(values))


def box(x: float, y: float, width: float, height: float, kind: str = "plain") -> str:
    return f'<rect class="box {kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2"/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def lines(x: float, y: float, rows: Iterable[str], kind: str = "", step: float = 14) -> str:
    """Text of several rows, one below the other."""
    return "".join(text(x, y + i * step, row, kind) for i, row in enumerate(rows))


def path(d: str, kind: str = "") -> str:
    return f'<path class="line {kind}" d="{d}"/>'


def arrow(x0: float, y0: float, x1: float, y1: float, kind: str = "") -> str:
    """A straight arrow."""
    return f'<path class="line {kind}" d="M{x0:g} {y0:g}L{x1:g} {y1:g}" marker-end="url(#tip)"/>'


def write(name: str, width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """The drawing, which is written to docs/images too. ``label``: what it shows, for who cannot see it."""
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker>'
    )
    dark = f"@media (prefers-color-scheme: dark) {{ {_colours(DARK)} }}"
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}"><style>{_colours(LIGHT)}{STYLE}{dark}</style><defs>{tip}</defs>'
        f"{''.join(parts)}</svg>\n"
    )
    (IMAGES / name).write_text(drawing)
    return drawing
