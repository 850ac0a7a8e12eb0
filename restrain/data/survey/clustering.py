"""Whether samples of one class lie together, so that groups see fewer classes than chance would give them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from restrain.data.order import Order, Plan
from restrain.data.reader import BadSample, Source
from restrain.data.survey.plan import alike

GROUPS = 16  # of the order, and as many samples drawn at random
MANY = 1.5  # times the chance, above which it is said


@dataclass(frozen=True)
class Clustering:
    """Share of pairs of one class: of samples of a group, and of samples from anywhere in the set."""

    group: float
    chance: float

    @property
    def clustered(self) -> bool:
        return self.group > MANY * self.chance + 0.01


def clustering(source: Source, order: Order, plan: Plan) -> Clustering | None:
    """Reads the labels of some groups, and of samples spread over the set. None where groups have one sample."""
    if plan.group < 2:
        return None
    steps = np.unique(np.linspace(0, plan.steps_per_epoch - 1, min(GROUPS, plan.steps_per_epoch)).astype(int))
    grouped = []
    for step in steps.tolist():
        epoch, positions = plan.groups(step)
        shard, j = order(epoch, positions[len(positions) // 2])
        grouped.append(_labels(source, shard, j))
    starts = np.concatenate(([0], np.cumsum(source.counts)))
    chosen = np.unique(np.linspace(0, starts[-1] - 1, min(int(starts[-1]), 16 * GROUPS)).astype(np.int64))
    shard = np.searchsorted(starts, chosen, side="right") - 1
    anywhere = _labels(source, shard, chosen - starts[shard])
    return Clustering(alike(np.array(grouped)), alike(anywhere[None]))


def _labels(source: Source, shard: np.ndarray, j: np.ndarray) -> np.ndarray:
    found = []
    for one, number in zip(shard.tolist(), j.tolist(), strict=True):
        try:
            found.append(source.read(one, number).label)
        except BadSample:
            found.append(-1 - len(found))  # like nothing else
    return np.array(found)
