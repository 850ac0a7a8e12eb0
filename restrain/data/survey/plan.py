"""How a set will be read: what each node reads, what lies in use at a time, how well a batch is mixed.

All of it comes from the very `Order` and `Plan` that a run reads by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from restrain.data.order import Order, Plan

WATCHED = 64  # steps of an epoch that are looked at, spread evenly: which lanes a rank takes repeats itself
BATCHES = 8  # whose mixing is looked at


@dataclass(frozen=True)
class Mixing:
    """Of a batch: different shards, and samples of the shard that has most of them; medians over some batches."""

    shards: float
    most: float


@dataclass(frozen=True)
class Reading:
    """amplification: bytes that all nodes read in an epoch over the bytes of the set. live_bytes: of the samples that
    are shuffled together at a time, on all nodes. node_bytes: what a node's cache holds at once: the shards of the
    present and the next windows of its lanes, at most all that it reads."""

    amplification: float
    live_bytes: int
    node_bytes: int


def reading(order: Order, plan: Plan, sizes: np.ndarray, nodes: int, ranks: int, epoch: int = 0) -> Reading:
    """sizes: bytes of each shard. ranks: of a node; the world is nodes x ranks."""
    total, read, most = float(sizes.sum()), 0.0, 0
    mean = total / max(1, order.samples)
    for node in range(nodes):
        lanes = node_lanes(order, plan, node, nodes, ranks)
        shards = np.unique(np.concatenate([order.lane_shards(epoch, lane) for lane in lanes]))
        own = float(sizes[shards].sum())
        read += own
        # A window begins and ends inside a shard, so each side needs one more.
        windows = len(lanes) * 2 * (order.window * mean + float(sizes.mean()))
        most = max(most, int(min(own, windows)))
    live = min(order.samples, order.lanes * order.window) * mean if order.shuffle else 0.0
    return Reading(read / total if total else 0.0, int(live), most)


def node_lanes(order: Order, plan: Plan, node: int, nodes: int, ranks: int) -> list[int]:
    """The lanes that the ranks of a node take samples of."""
    if order.lanes == 1:
        return [0]
    found: set[int] = set()
    for step in _spread(plan.steps_per_epoch, WATCHED):
        for rank in range(node * ranks, (node + 1) * ranks):
            _, positions = plan.rows(step, 1, rank, nodes * ranks)
            found |= set((positions // order.repeats % order.lanes).reshape(-1).tolist())
    return sorted(found)


def mixing(order: Order, plan: Plan, epoch: int = 0) -> Mixing:
    """How many shards the samples of one step are from."""
    shards, most = [], []
    for step in _spread(plan.steps_per_epoch, BATCHES):
        _, positions = plan.rows(step)
        shard, _ = order(epoch, positions.reshape(-1))
        counts = np.unique(shard, return_counts=True)[1]
        shards.append(len(counts))
        most.append(int(counts.max()))
    return Mixing(float(np.median(shards)), float(np.median(most)))


def full_mixing(counts: Sequence[int] | np.ndarray, batch: int) -> float:
    """Different shards expected in a batch that is drawn from the whole set at random."""
    share = np.asarray(counts, float) / np.sum(counts)
    return float(np.sum(1 - (1 - share) ** batch))


def alike(labels: np.ndarray) -> float:
    """The share of pairs that have one class, int64 [groups, n]: pairs of samples of the same group."""
    n = labels.shape[-1]
    same = (labels[..., :, None] == labels[..., None, :]).sum(axis=(-1, -2)) - n
    return float(same.mean() / (n * (n - 1))) if n > 1 else 0.0


def _spread(steps: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, steps - 1, min(steps, most)).astype(int)).tolist()
