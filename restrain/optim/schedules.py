"""Learning-rate schedules: pure functions of the step, so a resume is a call with another number.

The learning rate of step t (from 0) is ``initial_lr * factor(section, t, ...)``. With w warm-up steps of T in all::

    t < w    warmup_from + (1 - warmup_from) t / w          linear warm-up (Goyal et al. 2017, section 2.2)
    t >= w   the schedule's own factor, with progress p = (t - w) / (T - w), or t / T where warmup_prefix is false

With ``per: epoch`` t is the first step of its epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from restrain.errors import UserError, nearest

Steps = Callable[[Any], int]


def factor(section: Any, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """What the base learning rate is multiplied with in step ``step``.

    ``section`` is a recipe's ``schedule``: it has ``name``, ``warmup``, ``warmup_from`` and the keys of its name; its
    durations are objects with ``.steps(steps_per_epoch, total_steps)``.
    """
    if section.name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise UserError(f"schedule.name is {section.name!r}; it is one of {known}.{nearest(section.name, SCHEDULES)}")
    if getattr(section, "per", "step") == "epoch":
        step -= step % steps_per_epoch
    warmup = section.warmup.steps(steps_per_epoch, total_steps)
    if step < warmup:
        return section.warmup_from + (1.0 - section.warmup_from) * step / warmup
    start = warmup if getattr(section, "warmup_prefix", True) else 0
    return SCHEDULES[section.name](
        section, step, (start, total_steps), lambda duration: duration.steps(steps_per_epoch, total_steps)
    )


def _progress(step: int, start: int, end: int) -> float:
    """0 at ``start``, 1 at ``end`` and after."""
    return min(1.0, (step - start) / (end - start)) if end > start else 1.0


def _line(step: int, start: int, end: int, level: float, final: float | None) -> float:
    return level if final is None else level + (final - level) * _progress(step, start, end)


SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "sqrt": lambda progress: 1.0 - math.sqrt(progress),
}
"""How a fall from 1 to 0 looks."""


def _fall(shape: str, progress: float, final: float | None) -> float:
    """From 1 to ``final``."""
    final = final or 0.0
    return final + (1.0 - final) * SHAPES[shape](progress)


def cosine(section: Any, step: int, span: tuple[int, int], steps_of: Steps) -> float:
    """Half a cosine from 1 to ``final`` (Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, one period)."""
    return _fall("cosine", _progress(step, *span), section.final)


def linear(section: Any, step: int, span: tuple[int, int], steps_of: Steps) -> float:
    """A straight line from 1 to ``final``."""
    return _line(step, *span, 1.0, section.final or 0.0)


def constant(section: Any, step: int, span: tuple[int, int], steps_of: Steps) -> float:
    """1; with ``final``, a straight line to it."""
    return _line(step, *span, 1.0, section.final)


def steps(section: Any, step: int, span: tuple[int, int], steps_of: Steps) -> float:
    """``factor`` to the power of the milestones passed; with ``final``, a straight line to it after the last one."""
    milestones = [steps_of(at) for at in section.at]
    passed = sum(step >= at for at in milestones)
    level = section.factor**passed
    if passed < len(milestones):
        return level
    return _line(step, max([span[0], *milestones]), span[1], level, section.final)


def poly(section: Any, step: int, span: tuple[int, int], steps_of: Steps) -> float:
    """(1 - p)^power from 1 to ``final`` (You et al. 2017, arXiv:1708.03888, section 6; MLPerf's ResNet: power 2)."""
    final = section.final or 0.0
    return final + (1.0 - final) * (1.0 - _progress(step, *span)) ** section.power


def one_cycle(section: Any, step: int, span: tuple[int, int], steps_of: Steps) -> float:
    """From ``start`` up to 1 at ``peak``, then down to ``final`` at the end (Smith and Topin 2018, arXiv:1708.07120).

    FFCV's triangle: ``start`` 1e-4, ``peak`` 2 epochs, ``final`` 0, linear.
    """
    peak = steps_of(section.peak)
    if step < peak:
        return section.start + (1.0 - section.start) * (1.0 - SHAPES[section.shape](step / peak))
    return _fall(section.shape, _progress(step, peak, span[1]), section.final)


def wsd(section: Any, step: int, span: tuple[int, int], steps_of: Steps) -> float:
    """1 until ``decay`` before the end, then down to ``final`` (Hu et al. 2024, arXiv:2404.06395, section 4.2).

    The fall as 1 - sqrt is Hagele et al. 2024 (arXiv:2405.18392, section 3).
    """
    start = max(span[0], span[1] - steps_of(section.decay))
    return 1.0 if step < start else _fall(section.shape, _progress(step, start, span[1]), section.final)


def inverse_sqrt(section: Any, step: int, span: tuple[int, int], steps_of: Steps) -> float:
    """sqrt(w / t) after w warm-up steps (Vaswani et al. 2017, arXiv:1706.03762, equation 3, over its peak)."""
    return math.sqrt(span[0] / step) if step else 1.0


# Another schedule is a line here.
SCHEDULES: dict[str, Callable[[Any, int, tuple[int, int], Steps], float]] = {
    "step": steps,
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "poly": poly,
    "one_cycle": one_cycle,
    "wsd": wsd,
    "inverse_sqrt": inverse_sqrt,
}
