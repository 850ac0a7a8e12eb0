"""The ledger's row hashes, recomputed from the order, the plan and the index alone: what an audit compares with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from restrain import draws
from restrain.data.order import Order, Plan


def expected(
    order: Order,
    plan: Plan,
    crcs: Callable[[int], np.ndarray],
    replaced: Mapping[tuple[int, int], int] | None = None,
) -> Callable[[int], int]:
    """``hash(step)``: the sum (modulo 2^64) of mix(shard, j, crc, epoch, position) over the rows of a step.

    crcs: shard -> CRC-32 of its samples, uint32 [count]. replaced: (shard, j) -> the j that was used instead, from the
    run's bad samples.
    """
    swaps = dict(replaced or {})

    def step_hash(step: int) -> int:
        epoch, positions = plan.rows(step)
        position = positions[0]
        shard, j = order(epoch, position)
        if swaps:
            j = np.array([swaps.get(pair, pair[1]) for pair in zip(shard.tolist(), j.tolist(), strict=True)], np.int64)
        crc = lookup(crcs, shard, j)
        return int(draws.mix(shard, j, crc, epoch, position).sum(dtype=np.uint64))

    return step_hash


def lookup(crcs: Callable[[int], np.ndarray], shard: np.ndarray, j: np.ndarray) -> np.ndarray:
    """CRC-32 of each (shard, j), uint64 [n]; each shard's column is fetched once."""
    out = np.empty(len(shard), np.uint64)
    by_shard = np.argsort(shard, kind="stable")
    for run in np.split(by_shard, np.flatnonzero(np.diff(shard[by_shard])) + 1):
        out[run] = crcs(int(shard[run[0]]))[j[run]]
    return out
