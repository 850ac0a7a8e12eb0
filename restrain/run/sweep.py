"""Sweeps: recipes that differ in a few keys, frozen before the first of them runs.

Axes are written ``key={a,b,c}`` or ``key={0..4}`` (``{0..10..2}``: in steps of 2); ``key=value`` holds for all points.
A sweep's folder::

    sweep.json     recipe, axes, and of each point its overrides and its name
    recipes/       one file a point, everything resolved: what happens to the recipe meanwhile does not matter
    runs/          one run folder a point
    results.json   the table of results, once there is one
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from restrain.errors import UserError

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class Axis:
    """A key and the values that it takes."""

    key: str
    values: tuple[str, ...]


def parse(words: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The axes among ``key=value`` words, and the words that are the same for all points."""
    axes, fixed = [], []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and value.startswith("{") and value.endswith("}") and not _is_section(value):
            axes.append(Axis(key, _values(word, value[1:-1])))
        else:
            fixed.append(word)
    keys = [axis.key for axis in axes] + [word.partition("=")[0] for word in fixed]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key} stands twice: give all its values in one pair of braces.")
    return axes, fixed


def _is_section(value: str) -> bool:
    """``{name: step, at: [10ep]}`` is a section of a recipe and no list of values."""
    return re.match(r"\{\s*[A-Za-z_]\w*\s*:\s", value) is not None


def _values(word: str, inside: str) -> tuple[str, ...]:
    span = _RANGE.fullmatch(inside.strip())
    if span:
        first, last = int(span[1]), int(span[2])
        by = int(span[3] or (1 if last >= first else -1))
        if by == 0 or (last - first) * by < 0:
            raise UserError(f"{word}: from {first} one does not come to {last} in steps of {by}.")
        if abs(last - first) // abs(by) >= MOST_VALUES:
            raise UserError(f"{word} has more than {MOST_VALUES:,} values.")
        return tuple(str(n) for n in range(first, last + (1 if by > 0 else -1), by))
    values = tuple(one.strip() for one in _split(word, inside))
    if not all(values):
        raise UserError(f"{word}: a value between the commas is missing. Write key={{a,b,c}} or key={{0..4}}.")
    if len(set(values)) < len(values):
        raise UserError(f"{word}: a value stands twice.")
    return values


def _split(word: str, inside: str) -> Iterator[str]:
    """Cut at the commas that are not inside brackets."""
    depth, start = 0, 0
    for at, character in enumerate(inside):
        depth += character in "[{("
        depth -= character in "]})"
        if depth < 0:
            break
        if character == "," and depth == 0:
            yield inside[start:at]
            start = at + 1
    if depth:
        raise UserError(f"{word}: its brackets do not match.")
    yield inside[start:]


def count(axes: Sequence[Axis]) -> int:
    """The number of points."""
    return math.prod(len(axis.values) for axis in axes)


def points(axes: Sequence[Axis]) -> Iterator[tuple[str, ...]]:
    """The overrides of each point; the last axis runs fastest."""
    for values in itertools.product(*(axis.values for axis in axes)):
        yield tuple(f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True))


def label(overrides: Sequence[str], number: int) -> str:
    """A name for a point that a file can have: ``007_lr=0.1_seed=0``."""
    words = [re.sub(r"[^\w.=+-]+", "-", one.rpartition("=")[0].rpartition(".")[2] + "=" + one.rpartition("=")[2])
             for one in overrides]  # fmt: skip
    return "_".join([f"{number:03d}", *words])[:120]


@dataclass(frozen=True)
class Cell:
    """What the seeds of one setting reached. ``std``: of a sample (n - 1); None for one."""

    overrides: tuple[str, ...]
    values: tuple[float, ...]
    missing: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        numbers = {"mean": self.mean, "std": self.std, "n": len(self.values), "missing": self.missing}
        return {"overrides": list(self.overrides), **numbers, "values": list(self.values)}


def over_seeds(results: Mapping[tuple[str, ...], float | None]) -> list[Cell]:
    """Overrides of each point -> its value (None: it has none yet), put together over ``seed``."""
    settings: dict[tuple[str, ...], list[float | None]] = {}
    for overrides, value in results.items():
        settings.setdefault(tuple(one for one in overrides if not one.startswith("seed=")), []).append(value)
    return [
        Cell(setting, tuple(v for v in values if v is not None), sum(v is None for v in values))
        for setting, values in settings.items()
    ]
