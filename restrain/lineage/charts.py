"""Figures as SVG text, drawn here: lines, bars and maps. They take the page's colours, so they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#808080")
WIDTH, HEIGHT = 680, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 44  # pixels around the plot
ROW = 22  # pixels of a row of a legend or of a bar
LETTER = 6.6  # pixels of a letter, about


@dataclass(frozen=True)
class Line:
    """``x`` and ``y`` of one length; values that are not finite (and, on a log axis, not positive) are gaps."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``; ``log``: by powers of ten."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, 0 at ``low`` and 1 at ``high``."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def shows(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.log)

    def ticks(self) -> list[float]:
        """Three to eight round numbers; of a log axis powers of ten, and 2 and 5 times them where those are few."""
        if self.log:
            first, last = math.floor(math.log10(self.low) + 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first) / 6))
            steps = (1, 2, 5) if last - first < 2 else (1,)
            found = [n * 10.0**power for power in range(first, last + 1, step) for n in steps]
            return [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        step = _round_step((self.high - self.low) / 7)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis_over(values: Sequence[float], log: bool = False) -> Axis:
    """The axis that holds the finite values; of a log axis the positive ones, between numbers such as 1, 2, 5, 10."""
    kept = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not kept:
        return Axis(0.1, 1.0, log) if log else Axis(0.0, 1.0)
    low, high = min(kept), max(kept)
    if log:
        ends = [n * 10.0**power for power in _powers(low, high) for n in (1, 2, 5)]
        below, above = (max(end for end in ends if end <= low * (1 + 1e-9)), min(end for end in ends if end >= high))
        return Axis(below, above if above > below else 10 * below, True)
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return Axis(low if low == 0 else low - margin, high + margin)


def lines(title: str, x_label: str, y_label: str, found: Sequence[Line], log: bool = False) -> str:
    """Curves over one another, with a legend below."""
    across = axis_over([value for line in found for value in line.x])
    across = Axis(min((v for line in found for v in line.x), default=0.0), across.high)
    up = axis_over([value for line in found for value in line.y], log)
    body = [*_frame(across, up, x_label, y_label)]
    for number, line in enumerate(found):
        colour = COLOURS[(number if line.colour is None else line.colour) % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        for part in _runs(line, up):
            points = " ".join(f"{_x(across, x):.1f},{_y(up, y):.1f}" for x, y in part)
            body.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
            if len(part) < 3:
                body += [
                    f'<circle cx="{_x(across, x):.1f}" cy="{_y(up, y):.1f}" r="3" fill="{colour}"/>' for x, y in part
                ]
    legend, height = _legend([(line.name, line.colour, line.dashed) for line in found])
    return _svg(title, [*body, *legend], HEIGHT + height)


def bars(title: str, x_label: str, rows: Sequence[tuple[str, float]], log: bool = False) -> str:
    """A bar a row, its value written at its end."""
    left = min(260.0, 12 + LETTER * max(len(name) for name, _ in rows))
    axis = axis_over([value for _, value in rows] + ([] if log else [0.0]), log)
    width = WIDTH - left - 90
    body = []
    for number, (name, value) in enumerate(rows):
        y = TOP + number * ROW
        body.append(_text(left - 8, y + 15, name, "end"))
        if axis.shows(value):
            zero = 0.0 if log else axis.place(min(max(0.0, axis.low), axis.high))
            ends = sorted((zero, min(1.0, max(0.0, axis.place(value)))))
            x, long = left + ends[0] * width, max(1.0, (ends[1] - ends[0]) * width)
            colour = COLOURS[number % len(COLOURS)]
            body.append(f'<rect x="{x:.1f}" y="{y + 3}" width="{long:.1f}" height="{ROW - 6}" fill="{colour}"/>')
            body.append(_text(x + long + 6, y + 15, short(value)))
        else:
            body.append(_text(left, y + 15, "not finite"))
    bottom = TOP + len(rows) * ROW
    body.append(_text(left + width / 2, bottom + 20, x_label + (" (log scale)" if log else ""), "middle", faint=True))
    return _svg(title, body, bottom + 30)


def heat(title: str, x_label: str, y_label: str, table: Sequence[Sequence[float]], low: float, high: float) -> str:
    """A map: ``table[row][column]`` between ``low`` (paper) and ``high`` (blue); row 0 is at the top."""
    rows, columns = len(table), len(table[0])
    wide, tall = (WIDTH - LEFT - RIGHT) / columns, (HEIGHT - TOP - BOTTOM) / rows
    body = []
    for r, row in enumerate(table):
        for c, value in enumerate(row):
            share = min(1.0, max(0.0, (value - low) / (high - low))) if math.isfinite(value) else 0.0
            place = (
                f'x="{LEFT + c * wide:.1f}" y="{TOP + r * tall:.1f}" width="{wide + 0.5:.1f}" height="{tall + 0.5:.1f}"'
            )
            body.append(f'<rect {place} fill="{COLOURS[0]}" fill-opacity="{share:.3f}"/>')
    body.append(_text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, x_label, "middle", faint=True))
    body.append(_upright(14, TOP + (HEIGHT - TOP - BOTTOM) / 2, y_label))
    for text, y in (("0", TOP + 10), (str(rows - 1), HEIGHT - BOTTOM)):
        body.append(_text(LEFT - 6, y, text, "end", faint=True))
    body.append(_text(LEFT, HEIGHT - BOTTOM + 16, f"white {short(low)}, blue {short(high)}", faint=True))
    return _svg(title, body, HEIGHT)


def short(value: float) -> str:
    """A number as a figure shows it."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.2e}"


def _powers(low: float, high: float) -> range:
    """Exponents of ten that reach from below ``low`` to above ``high``."""
    return range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * n for n in (1, 2, 5, 10) if rough <= power * n * (1 + 1e-9))


def _runs(line: Line, up: Axis) -> list[list[tuple[float, float]]]:
    """The pieces of a line between its gaps."""
    parts: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if up.shows(y):
            parts[-1].append((x, y))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _frame(across: Axis, up: Axis, x_label: str, y_label: str) -> list[str]:
    body = []
    for value in up.ticks():
        y = _y(up, value)
        body.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>')
        body.append(_text(LEFT - 6, y + 4, short(value), "end", faint=True))
    for value in across.ticks():
        body.append(_text(_x(across, value), HEIGHT - BOTTOM + 16, short(value), "middle", faint=True))
    body.append(_text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, x_label, "middle", faint=True))
    body.append(_upright(14, TOP + (HEIGHT - TOP - BOTTOM) / 2, y_label))
    return body


def _legend(entries: Sequence[tuple[str, int | None, bool]]) -> tuple[list[str], int]:
    """Names beside a stroke of their colour, as many in a row as fit; and the height that they take."""
    body, x, y = [], float(LEFT), HEIGHT + 10
    for number, (name, chosen, dashed) in enumerate(entries):
        width = 44 + LETTER * len(name)
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + ROW
        colour = COLOURS[(number if chosen is None else chosen) % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        body.append(f'<path d="M{x:.0f} {y}h22" stroke="{colour}" stroke-width="3"{dash}/>')
        body.append(_text(x + 28, y + 4, name))
        x += width
    return body, y - HEIGHT + 12


def _text(x: float, y: float, text: str, anchor: str = "start", faint: bool = False) -> str:
    colour = "var(--faint)" if faint else "var(--ink)"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _upright(x: float, y: float, text: str) -> str:
    turned = f'transform="rotate(-90 {x:.0f} {y:.0f})"'
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" fill="var(--faint)" {turned}>{escape(text)}</text>'


def _svg(title: str, body: Sequence[str], height: float) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" font-size="12" xmlns="http://www.w3.org/2000/svg">'
    return "\n".join([head, f"<title>{escape(title)}</title>", *body, "</svg>"])
