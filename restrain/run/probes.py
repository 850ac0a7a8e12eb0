"""``probes.jsonl``: what the probes read, one line a sampled step with a list a quantity, in depth order.

``{"step": 100, "joins": ["layer1.0.join", ...], "ratio": [0.31, ...], "cosine": [...], ...}``; null where a join has no
such quantity or was skipped in that step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restrain.run import journal
from restrain.run.numbers import loose

DIGITS = 6  # significant ones


def line(step: int, joins: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> dict[str, object]:
    """One line of the file; quantities that no join has are left out."""
    kept = {
        name: [None if value is None else float(f"{value:.{DIGITS}g}") for value in column]
        for name, column in values.items()
        if any(value is not None for value in column)
    }
    return {"step": step, "joins": list(joins), **kept}


@dataclass(frozen=True)
class Readings:
    """S sampled steps, J joins in depth order. ``values``: quantity -> float64 [J, S], NaN where there is none."""

    steps: list[int]
    joins: list[str]
    values: dict[str, np.ndarray]


def read(path: Path) -> Readings:
    """The file as maps of depth over time; no file: no steps. Joins that only some steps passed have a row as well."""
    lines = [loose(one) for one in journal.read(path)]
    lines = [one for one in lines if _is_whole(one)]  # others were written by another hand
    longest = max((one["joins"] for one in lines), key=len, default=[])
    joins = list(dict.fromkeys([*longest, *(name for one in lines for name in one["joins"])]))
    place = {name: n for n, name in enumerate(joins)}
    names = dict.fromkeys(name for one in lines for name in one if name not in ("step", "joins"))
    values = {name: np.full((len(joins), len(lines)), np.nan) for name in names}
    for at, one in enumerate(lines):
        rows = [place[name] for name in one["joins"]]
        for name in names:
            if name in one:
                values[name][rows, at] = [np.nan if value is None else value for value in one[name]]
    return Readings([int(one["step"]) for one in lines], joins, values)


def _is_whole(line: Any) -> bool:
    """Whether a line has a step, and a number or null a join in each quantity."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or not isinstance(line.get("joins"), list):
        return False
    if not all(isinstance(name, str) for name in line["joins"]):
        return False
    lists = [value for name, value in line.items() if name not in ("step", "joins")]
    return all(
        isinstance(values, list)
        and len(values) == len(line["joins"])
        and all(value is None or isinstance(value, (int, float)) for value in values)
        for values in lists
    )
