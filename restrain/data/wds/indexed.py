"""Restrain's order as the first stage of a webdataset pipeline, for loops of one's own. No torch and no webdataset."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from restrain.data.order import Order, Plan, check_world, resolve_shuffle
from restrain.data.reader import BadSample
from restrain.data.sets import open_source
from restrain.data.sources import ShardSource
from restrain.errors import UserError, WorldError

TRIES = 8  # replacements tried for one sample with bit rot, as in training


class IndexedSource:
    """The first stage of ``wds.DataPipeline``: webdataset's dicts in the order in which a run would train on them.

    >>> pipeline = wds.DataPipeline(
    ...     IndexedSource("shards", "train-*.tar", seed=0, batch=256, stop=10_000),
    ...     wds.decode("rgb8"), wds.to_tuple("jpg", "cls"), wds.batched(256),
    ... )
    >>> loader = wds.WebLoader(pipeline, batch_size=None, num_workers=0)

    Rows [(t - start) * batch / world, ...) of what a rank is given are its rows of step t, those of a run with the same
    seed, batch and group: to go on after step t give ``start=t``. This is exact as long as the stages behind it give
    one sample for one, in order (``wds.shuffle`` and ``wds.select`` do not), and in one process: with more than one
    worker, who hands over which batch would decide the order, so that is refused. What a loop has drawn but not trained
    on is for the loop to know: count steps, not samples.

    Samples whose bytes are not those indexed are replaced by the next good one of their shard, and noted in
    ``replaced`` as (shard, j, reason, j used); what cannot be decoded is the business of the stages.
    """

    def __init__(
        self,
        root: str | Path,
        shards: str,
        *,
        seed: int,
        batch: int,
        group: int | None = None,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        cache: str | None = None,
    ):
        """root, shards: folder (or http root) and pattern, as ``data.root`` and ``data.train``. batch: samples of a
        step, over all ranks. group: ``batch.group``; the rank's share when not given. start, stop: steps, by default to
        the end of the epoch of ``start``. cache: ``data.cache``.

        Raises UserError for sizes that do not fit, WorldError for damaged or missing shards.
        """
        section = SimpleNamespace(
            name="webdataset", root=str(root), train=shards, eval=None, cache=cache, cache_bytes=None, mode="shards"
        )
        section.index = None
        source = open_source(section, "train")
        assert isinstance(source, ShardSource)
        if world < 1 or not 0 <= rank < world:
            raise UserError(f"IndexedSource(rank={rank}, world={world}): rank is to be 0 to world - 1.")
        if group is None:
            if batch % world:
                raise UserError(f"IndexedSource(batch={batch}) cannot be shared by world={world} equally.")
            group = batch // world
        self.source, self.rank, self.world = source, rank, world
        samples = int(source.counts.sum())
        lanes, window = resolve_shuffle(samples, "auto", "auto")
        self.order = Order(source.counts, seed, lanes, window, shuffle)
        self.plan = Plan(samples, batch, group, lanes)
        check_world(batch, group, world)
        epoch_end = (start // self.plan.steps_per_epoch + 1) * self.plan.steps_per_epoch
        self.start, self.stop = start, epoch_end if stop is None else stop
        if not 0 <= self.start <= self.stop:
            raise UserError(f"IndexedSource(start={start}, stop={self.stop}): steps count from 0, and stop is the end.")
        self.replaced: list[tuple[str, int, str, int]] = []

    def __len__(self) -> int:
        """Samples that this rank is given."""
        return (self.stop - self.start) * (self.plan.batch // self.world)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._refuse_workers()
        for step in range(self.start, self.stop):
            epoch, positions = self.plan.rows(step, 1, self.rank, self.world)
            shards, numbers = self.order(epoch, positions[0])
            for shard, j in zip(shards.tolist(), numbers.tolist(), strict=True):
                yield self._sample(shard, j)

    def __call__(self) -> Iterator[dict[str, Any]]:
        """What ``wds.DataPipeline`` calls its first stage by."""
        return iter(self)

    def close(self) -> None:
        """Close the shards."""
        self.source.close()

    def _sample(self, shard: int, j: int) -> dict[str, Any]:
        first: BadSample | None = None
        for used in ((j + t) % int(self.source.counts[shard]) for t in range(TRIES + 1)):
            try:
                sample = self.source.sample(shard, used)
            except BadSample as error:
                first = first or error
                continue
            if first is not None:
                self.replaced.append((self.source.names[shard], j, first.reason, used))
            return sample
        raise WorldError(
            f"No usable sample: {first}; and the {TRIES} samples after it are bad too. Restore "
            f"{self.source.names[shard]} from its origin."
        )

    def _refuse_workers(self) -> None:
        data = sys.modules.get("torch.utils.data")  # nobody's worker has come without it
        info = data.get_worker_info() if data is not None else None
        if info is not None and info.num_workers > 1:
            raise UserError(
                f"IndexedSource runs in {info.num_workers} workers: each would read every sample, and their turns "
                f"would decide the order. Give wds.WebLoader(..., num_workers=0), or 1 to read beside the training."
            )
