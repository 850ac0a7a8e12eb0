"""A run's journal as columns, and where two of them part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from restrain.run import journal

NOT_REPRODUCIBLE = ("wall", "train/samples_per_s", "train/data_wait")  # how long something took is no result
SPAN = 25  # points of the moving average by which curves are compared
SHARE = 0.05  # how far apart two averages have to be


@dataclass(frozen=True)
class Column:
    """A metric: its values at those steps that have one. ``steps`` int64 [n] rising, ``values`` float64 [n]."""

    steps: np.ndarray
    values: np.ndarray

    def smooth(self) -> np.ndarray:
        """The mean over the last ``SPAN`` values, float64 [n]; the first ones over those that there are."""
        sums = np.concatenate(([0.0], np.cumsum(self.values)))
        ends = np.arange(1, len(self.values) + 1)
        starts = np.maximum(ends - SPAN, 0)
        return (sums[ends] - sums[starts]) / (ends - starts)


def columns(path: Path) -> dict[str, Column]:
    """Every numeric metric of a journal."""
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for line in journal.read(path):
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                steps.setdefault(name, []).append(int(line["step"]))
                values.setdefault(name, []).append(float(value))
    return {name: Column(np.array(steps[name]), np.array(values[name])) for name in steps}


def training_seconds(wall: np.ndarray) -> np.ndarray:
    """Seconds of training up to each line, float64 [n], from its clock: a gap of more than ten times the usual and a
    minute is a pause between two starts (and a clock may be set back), and counts as a usual step."""
    if len(wall) < 2:
        return np.zeros(len(wall))
    gaps = np.diff(wall)
    usual = float(np.median(gaps))
    gaps = np.where((gaps > max(60.0, 10 * usual)) | (gaps < 0), usual, gaps)
    return np.concatenate(([0.0], np.cumsum(gaps)))


def clock(seconds: float) -> str:
    """``1:02:03``."""
    whole = round(float(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def hashes(path: Path) -> dict[int, tuple]:
    """Step -> what the ledger says that it was trained on."""
    return {line["step"]: tuple(v for k, v in sorted(line.items()) if k != "step") for line in journal.read(path)}


def first_difference(one: Mapping[int, tuple], other: Mapping[int, tuple]) -> tuple[int | None, int]:
    """(first step that was trained on other samples, last step that both have)."""
    common = sorted(one.keys() & other.keys())
    return next((step for step in common if one[step] != other[step]), None), common[-1] if common else 0


@dataclass(frozen=True)
class Parting:
    """Where two curves part: the first step where they differ in any bit, and from which on they stay apart."""

    differs_at: int | None
    parts_at: int | None


def parting(one: Column, other: Column) -> Parting:
    """Of the steps that both have. They "part" where the means over the last ``SPAN`` values differ by more than
    ``SHARE`` of their size, from there on at every step, for ``SPAN`` values or a quarter of all: a last wiggle is no
    parting."""
    _, first, second = np.intersect1d(one.steps, other.steps, return_indices=True)
    steps = one.steps[first]
    same = (one.values[first] == other.values[second]) | (np.isnan(one.values[first]) & np.isnan(other.values[second]))
    a, b = one.smooth()[first], other.smooth()[second]
    apart = ~(np.abs(a - b) <= SHARE * np.maximum(np.abs(a), np.abs(b)))
    together = np.flatnonzero(~apart)
    start = int(together[-1]) + 1 if len(together) else 0
    return Parting(
        None if same.all() else int(steps[np.argmin(same)]),
        int(steps[start]) if len(steps) - start >= max(1, min(SPAN, len(steps) // 4)) else None,
    )
