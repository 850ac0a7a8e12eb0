"""A claim, what is expected of its numbers, and whether they agree. Plain data; the judgement is one pure function."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from restrain.lineage.bench import Bench

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq}
Op = Literal["<", "<=", ">", ">=", "="]


@dataclass(frozen=True)
class Check:
    """``left op factor x right``: ``left`` names a number of the outcome, ``right`` is a number or names another.

    ``side``: a condition beside the claim (that the other arm is sound, say), which alone does not show it.
    """

    left: str
    op: Op
    right: float | str
    factor: float = 1.0
    side: bool = False

    def holds(self, numbers: Mapping[str, float]) -> bool:
        """Whether it is so; a number that is not finite meets no expectation. KeyError where one is missing."""
        left, right = numbers[self.left], self.bound(numbers)
        return math.isfinite(left) and math.isfinite(right) and OPERATORS[self.op](left, right)

    def bound(self, numbers: Mapping[str, float]) -> float:
        """The right side as a number."""
        return self.factor * (numbers[self.right] if isinstance(self.right, str) else self.right)

    def __str__(self) -> str:
        right = self.right if isinstance(self.right, str) else f"{self.right:g}"
        times = "" if self.factor == 1.0 else f"{self.factor:g} x "
        return f"{self.left} {self.op} {times}{right}"


@dataclass(frozen=True)
class Outcome:
    """What was seen. ``figure``: one SVG element or more; ``commands``: what a person types to do the same; ``notes``:
    what should be known of the small form beside its numbers."""

    numbers: dict[str, float]
    figure: str
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """``checks`` and ``expected`` (the same in words) are written before the run. ``short``: what the small form is;
    ``long``: commands of the published form."""

    number: int
    title: str
    text: str
    source: str
    short: str
    expected: str
    checks: tuple[Check, ...]
    run: Callable[[Bench], Outcome]
    long: tuple[str, ...] = ()


Word = Literal["agrees", "agrees in part", "not shown", "not run"]


@dataclass(frozen=True)
class Verdict:
    """``held``: of each check, in the claim's order; empty where nothing was run. ``why``: the reason of that."""

    word: Word
    held: tuple[bool, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Report:
    """A claim with its outcome (None: not run) and what it took. ``budget``: share of the short form's length."""

    claim: Claim
    outcome: Outcome | None
    verdict: Verdict
    seconds: float = 0.0
    budget: float = 1.0
    written: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """The verdict; of trainings cut short a trial's, which proves nothing."""
        trial = self.outcome is not None and self.budget < 1.0
        return f"{self.verdict.word} (trial)" if trial else self.verdict.word


def judge(checks: tuple[Check, ...], numbers: Mapping[str, float]) -> Verdict:
    """All hold: agrees. Some: agrees in part. None but side conditions: the small form does not show the claim."""
    held = tuple(check.holds(numbers) for check in checks)
    if all(held):
        return Verdict("agrees", held)
    shown = any(so and not check.side for check, so in zip(checks, held, strict=True))
    return Verdict("agrees in part" if shown else "not shown", held)
