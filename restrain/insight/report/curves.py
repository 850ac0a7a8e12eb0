"""A run's metrics with as many points as a page can hold: means of neighbouring steps, and between what they lay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

DIGITS = 6  # significant ones; more are no use in a picture


@dataclass(frozen=True)
class Series:
    """A metric. ``step`` [n] rising, ``mean`` [n], and where points stand for several steps ``low`` and ``high`` [n];
    ``span``: steps with a value that a point stands for, at most. NaN: no finite value there."""

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    span: int


@dataclass(frozen=True)
class Curves:
    """``series`` by metric. ``axes``: what other axes than ``step`` say at ``axes["step"]``: ``epoch``, ``samples``
    and ``hours`` (of training: pauses between two starts do not count), each [n]."""

    series: dict[str, Series]
    axes: dict[str, np.ndarray]

    def as_dict(self) -> dict:
        """Plain data; series with the same steps share one list of them."""
        grids: list[list[int]] = []
        places: dict[bytes, int] = {}
        series = {}
        for name, one in self.series.items():
            key = one.step.tobytes()
            if key not in places:
                places[key] = len(grids)
                grids.append(one.step.tolist())
            found = {"grid": places[key], "span": one.span, "mean": _plain(one.mean)}
            if one.low is not None and one.high is not None:
                found |= {"low": _plain(one.low), "high": _plain(one.high)}
            series[name] = found
        axes = {name: values.tolist() if name == "step" else _plain(values) for name, values in self.axes.items()}
        return {"grids": grids, "series": series, "axes": axes}


def reduce(metrics: Mapping[str, tuple[np.ndarray, np.ndarray]], axes: Mapping[str, np.ndarray], most: int) -> Curves:
    """``metrics``: name -> (steps [n] rising, values [n]). ``axes``: ``step`` [m] and others [m]. A series of more than
    ``most`` points becomes ``most`` of them, each for a run of neighbouring ones, at the last one's step; the other
    axes are kept at those steps."""
    series = {name: _reduced(steps, values, most) for name, (steps, values) in metrics.items()}
    known = axes["step"]
    wanted = np.unique(np.concatenate([known[:1], *(one.step for one in series.values())])) if len(known) else known
    kept = {
        name: wanted if name == "step" else np.interp(wanted, known, values) if len(known) else values
        for name, values in axes.items()
    }
    return Curves(series, kept)


def _reduced(steps: np.ndarray, values: np.ndarray, most: int) -> Series:
    if len(steps) <= most:
        return Series(steps, np.where(np.isfinite(values), values, math.nan), None, None, 1)
    edges = np.linspace(0, len(steps), most + 1).round().astype(int)
    parts = [values[a:b][np.isfinite(values[a:b])] for a, b in pairwise(edges)]
    three = np.array([(p.mean(), p.min(), p.max()) if len(p) else (math.nan,) * 3 for p in parts])
    return Series(steps[edges[1:] - 1], three[:, 0], three[:, 1], three[:, 2], int(np.diff(edges).max()))


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values.tolist()]
