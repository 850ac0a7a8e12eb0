"""What probes have read, as maps of depth over time with as many cells as a page can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from restrain.insight.quantities import QUANTITIES, Quantity

MOST = 150  # rows or columns of a map; of more, as many are shown as fit, evenly spread
DIGITS = 4  # significant ones


@dataclass(frozen=True)
class Maps:
    """S steps, J joins in depth order, ``values``: quantity -> float64 [J, S], NaN where there is none."""

    steps: Sequence[int]
    joins: Sequence[str]
    values: Mapping[str, np.ndarray]

    def as_dict(self) -> dict:
        """Plain data of at most ``MOST`` steps and joins; the last of both is among them."""
        columns, rows = _spread(len(self.steps)), _spread(len(self.joins))
        return {
            "steps": [self.steps[n] for n in columns],
            "joins": [self.joins[n] for n in rows],
            "values": {name: _plain(values[np.ix_(rows, columns)]) for name, values in self.values.items()},
        }


def drawn(runs: Sequence[Maps | None]) -> list[Quantity]:
    """The quantities that any of the runs has."""
    return [q for q in QUANTITIES if any(maps is not None and q.name in maps.values for maps in runs)]


def _spread(count: int) -> list[int]:
    if count <= MOST:
        return list(range(count))
    return [round(n * (count - 1) / (MOST - 1)) for n in range(MOST)]


def _plain(values: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{v:.{DIGITS}g}") if math.isfinite(v) else None for v in row] for row in values.tolist()]
