"""What a run reached beside what its recipe expects: one judgement, for the last words of a run, lists and sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from restrain.recipe.placement import is_placement
from restrain.recipe.schema_run import Expect

Word = Literal["reached", "within tolerance", "missed", "not comparable"]
NOT_A_CHANGE = ("seed", "precision", "deterministic")  # an expected value holds for any of them


@dataclass(frozen=True)
class Verdict:
    """``short``: by how much the value falls short of the expected one; negative where it is better."""

    word: Word
    metric: str
    value: float
    short: float
    expected: float
    tolerance: float
    source: str
    changes: tuple[str, ...]

    def __str__(self) -> str:
        said = self.word
        if self.word == "missed":
            said = f"missed by {abs(self.short):.4g}" if math.isfinite(self.short) else "missed"
        elif self.word == "not comparable":
            shown = ", ".join(self.changes[:3]) + (", ..." if self.changes[3:] else "")
            said = f"that is of the recipe as it ships, which this run changes: {shown}"
        return (
            f"{self.metric}: {self.value:.2f}, expected {self.expected:g} (tolerance {self.tolerance:g}, "
            f"{self.source}): {said}"
        )

    def short_form(self) -> str:
        """For a cell of a table."""
        return f"missed by {abs(self.short):.2f}" if self.word == "missed" else self.word

    def as_dict(self) -> dict[str, Any]:
        """For ``run.json``."""
        names = ("word", "metric", "value", "short", "expected", "tolerance", "source", "changes")
        return {name: getattr(self, name) for name in names}


def judge(expect: Expect, value: float, changes: Sequence[str] = ()) -> Verdict:
    """``value`` of ``expect.metric`` at the end of a run.

    changes: the ``key=value`` that the run has over the recipe whose expectation this is. A key that defines the run
    makes the two incomparable, unless the value was reached all the same.
    """
    short = expect.value - value if expect.better == "higher" else value - expect.value
    changes = tuple(one for one in changes if defines(one.partition("=")[0]))
    word: Word = "missed"
    if short <= 0:
        word = "reached"
    elif changes:
        word = "not comparable"
    elif short <= expect.tolerance:
        word = "within tolerance"
    return Verdict(word, expect.metric, value, short, expect.value, expect.tolerance, expect.source, changes)


def defines(key: str) -> bool:
    """Whether another value of a dotted key makes another recipe of it, of which nothing was promised."""
    return not is_placement(key) and key not in NOT_A_CHANGE
