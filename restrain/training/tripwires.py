"""Tripwires: bounds that a sound run keeps on its way, so that a hopeless one is seen early (``expect.at``).

A wire is looked at once: the first value of its metric from its moment on. Which wires have been looked at is part of
the checkpoint, so a run that goes on past one does not meet it again. Values are those of the reduced step vector and
of evaluations, which all ranks have alike, so all ranks decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from restrain.recipe.durations import Duration
from restrain.recipe.schema_run import Expect, Tripwire

EXIT_TRIPPED = 3  # the run left in good order because it is hopeless; a requeue would not help


@dataclass(frozen=True)
class Tripped:
    """A bound that was broken."""

    wire: Tripwire
    step: int
    value: float

    def __str__(self) -> str:
        bounds = [f"at least {self.wire.min:g}"] if self.wire.min is not None else []
        bounds += [f"at most {self.wire.max:g}"] if self.wire.max is not None else []
        return (
            f"tripwire: {self.wire.metric} is {self.value:.6g} at step {self.step}; a sound run has "
            f"{' and '.join(bounds)} from {self.wire.at} on"
        )

    def as_dict(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {"step": self.step, "metric": self.wire.metric, "value": self.value, "act": self.wire.act}


class Tripwires:
    """The wires of a run.

    Args:
        expect: the recipe's, or None.
        step_of: a moment to the step at which it is.
        looked_at: names of the wires that have been looked at, as a checkpoint keeps them; grows in place.
    """

    def __init__(self, expect: Expect | None, step_of: Callable[[Duration], int], looked_at: list[str]):
        self.looked_at = looked_at
        self.waiting = [(step_of(wire.at), wire) for wire in (expect.at if expect is not None else ())]
        self.waiting = [(step, wire) for step, wire in self.waiting if name(wire) not in looked_at]

    def look(self, step: int, metrics: Mapping[str, float]) -> list[Tripped]:
        """The wires that the values of ``step`` break, each once."""
        found = []
        for at, wire in list(self.waiting):
            if step < at or wire.metric not in metrics:
                continue
            self.waiting.remove((at, wire))
            self.looked_at.append(name(wire))
            value = metrics[wire.metric]
            low = wire.min is not None and not value >= wire.min  # written so that NaN breaks both
            high = wire.max is not None and not value <= wire.max
            if low or high or math.isnan(value):
                found.append(Tripped(wire, step, value))
        return found


def name(wire: Tripwire) -> str:
    """What tells a wire from the others, in a checkpoint."""
    return f"{wire.metric}@{wire.at}:{wire.min}:{wire.max}"
