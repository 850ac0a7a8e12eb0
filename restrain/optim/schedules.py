"""Learning-rate schedules: pure functions of the step, so a resume is a call with another number.

The learning rate of step t (from 0) is ``initial_lr * factor(section, t, ...)``. With w warm-up steps of T in all::

    t < w    warmup_from + (1 - warmup_from) t / w          linear warm-up (Goyal et al. 2017, section 2.2)
    t >= w   the schedule's own factor, with progress p = (t - w) / (T - w)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from restrain.errors import UserError, nearest


def factor(section: Any, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """What the base learning rate is multiplied with in step ``step``.

    ``section`` has ``name``, ``warmup`` (a duration: an object with ``.steps(steps_per_epoch, total_steps)``),
    ``warmup_from``, ``final``, and for ``step`` also ``at`` (durations) and ``factor``.
    """
    if section.name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise UserError(f"schedule.name is {section.name!r}; it is one of {known}.{nearest(section.name, SCHEDULES)}")
    warmup = section.warmup.steps(steps_per_epoch, total_steps)
    if step < warmup:
        return section.warmup_from + (1.0 - section.warmup_from) * step / warmup
    milestones = [at.steps(steps_per_epoch, total_steps) for at in getattr(section, "at", ())]
    return SCHEDULES[section.name](section, step, (warmup, total_steps), milestones)


def _progress(step: int, start: int, end: int) -> float:
    """0 at ``start``, 1 at ``end`` and after."""
    return min(1.0, (step - start) / (end - start)) if end > start else 1.0


def _line(step: int, start: int, end: int, level: float, final: float | None) -> float:
    return level if final is None else level + (final - level) * _progress(step, start, end)


def cosine(section: Any, step: int, span: tuple[int, int], milestones: list[int]) -> float:
    """Half a cosine from 1 to ``final`` (Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, one period)."""
    final = section.final or 0.0
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * _progress(step, *span)))


def linear(section: Any, step: int, span: tuple[int, int], milestones: list[int]) -> float:
    """A straight line from 1 to ``final``."""
    return _line(step, *span, 1.0, section.final or 0.0)


def constant(section: Any, step: int, span: tuple[int, int], milestones: list[int]) -> float:
    """1; with ``final``, a straight line to it."""
    return _line(step, *span, 1.0, section.final)


def steps(section: Any, step: int, span: tuple[int, int], milestones: list[int]) -> float:
    """``factor`` to the power of the milestones passed; with ``final``, a straight line to it after the last one."""
    passed = sum(step >= at for at in milestones)
    level = section.factor**passed
    if passed < len(milestones):
        return level
    return _line(step, max([span[0], *milestones]), span[1], level, section.final)


# Another schedule is a line here.
SCHEDULES: dict[str, Callable[[Any, int, tuple[int, int], list[int]], float]] = {
    "step": steps,
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}
