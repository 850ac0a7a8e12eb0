"""Batches for training and evaluation: plain iterables over a `Ring`, without state of their own.

The training loader is made for a start step and has a length. Which rows it hands over is a function of (order, plan,
rank, world, step); what is in them, of the row's key. Threads only decide when.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch

from restrain import draws
from restrain.data import mix as mixing
from restrain.data.batches import Bad, EvalBatch, MicroBatch, Replaced, StepBatch, pixel_crcs
from restrain.data.filling import (
    TRIES,
    Buffer,
    Job,
    Rows,
    batched,
    check_budget,
    chunk_rows,
    make_slots,
    no_usable,
    read_into,
)
from restrain.data.gpu import CHUNK, DeviceDecoder, DeviceFill
from restrain.data.laps import Laps
from restrain.data.order import Order, Plan, check_micro, check_world
from restrain.data.reader import ArraySource, BadSample, Sample, Source
from restrain.data.ring import Ring
from restrain.data.workers import Workers
from restrain.draws import Purpose
from restrain.errors import UserError, WorldError

__all__ = ["Bad", "EvalBatch", "EvalLoader", "MicroBatch", "Replaced", "StepBatch", "TrainLoader", "pixel_crcs"]

AHEAD = 8  # batches of an evaluation between two looks at what comes
BLOCK = 4096  # positions planned at once: the cost of small steps is numpy's calls, not their length


class TrainLoader:
    """The steps [start, stop) of a run, as one rank sees them: ``len()`` is their number, iterating gives `StepBatch`.

    Raises UserError at once where world or micro-batch do not fit, and while iterating WorldError when more than
    ``max_bad`` of the samples seen (at least 10) were bad. Each iteration starts at ``start``. Call :meth:`close` (or
    use it up) to join its threads.
    """

    micro_batch = MicroBatch

    def __init__(
        self,
        source: Source,
        order: Order,
        plan: Plan,
        pipeline: Rows,
        *,
        seed: int,
        rank: int,
        world: int,
        micro: int,
        start: int,
        stop: int,
        threads: int,
        max_bad: float = 1e-4,
        pixels: bool = False,
        mix: mixing.Mix | None = None,
        pin: bool = False,
        sides: Callable[[int], int] | None = None,
        laps: Laps | None = None,
        processes: int = 0,
        device: torch.device | None = None,
    ):
        """micro: samples of a micro-batch. pixels: also give the CRC of each row. pin: page-locked buffers (CUDA).
        sides: epoch -> side of its images, at most the pipeline's; None: the pipeline's. laps: times the stages.
        processes: that many fill the batches in place of the threads. device: decodes the images and holds the batches
        (`gpu.check` says which pipelines can be)."""
        if (plan.samples, plan.repeats) != (order.samples, order.repeats):
            raise ValueError(
                f"a plan of {plan.samples} samples in {plan.repeats} copies for an order of {order.samples} in "
                f"{order.repeats}"
            )
        for segment in [plan.segment(start), *(later for later in plan.segments if later.from_step > start)]:
            check_world(segment.batch, segment.group, world)
            check_micro(segment.batch, segment.group, world, micro)
            if mix is not None and micro < segment.group:
                raise UserError(
                    f"mixup and cutmix need whole groups on each process, and one of batch.group={segment.group} spans "
                    f"several of the {world}."
                )
        self.source, self.order, self.plan, self.pipeline = source, order, plan, pipeline
        self.seed, self.rank, self.world, self.micro = seed, rank, world, micro
        self.start, self.stop, self.threads = start, stop, max(1, threads)
        self.max_bad, self.pixels, self.mix, self.pin, self.sides = max_bad, pixels, mix, pin, sides
        self.laps, self.processes, self.device = laps or Laps(), processes, device
        if device is not None and processes:
            raise UserError("data.processes write into the host's memory, and data.decode=gpu decodes on the device.")
        if start < stop and (check_room := getattr(source, "check_room", None)) is not None:
            count = plan.steps_together(start, min(max(1, BLOCK // plan.segment(start).batch), stop - start))
            epoch, positions = plan.rows(start, count, rank, world)
            check_room(order.ahead(epoch, positions))
        self._pipelines = {pipeline.size: pipeline}
        self._ring: Ring[Job, Buffer] | None = None
        self._workers: Workers | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[StepBatch]:
        self.close()
        rows = max(segment.batch for segment in self.plan.segments) // self.world
        whole = batched(self.source, self.pipeline)
        threads = self.threads
        slots = make_slots(rows, self.pipeline, self.pin, len(self), bool(self.processes), self.device)
        fill = self._fill_batch if whole else self._fill_rows
        if self.processes and not whole:
            self._workers, threads = Workers(self.processes, fill, slots, self._sized, self.laps), self.processes
            fill = self._workers.fill
        chunk = rows if whole else chunk_rows(rows, threads)
        if self.device is not None:
            fill, chunk = DeviceFill(self.source, DeviceDecoder(self.device), self.laps).fill, CHUNK
        ring = self._ring = Ring(self._jobs(), slots, fill, threads, chunk)
        seen = bad = 0
        try:
            while True:
                asked = time.perf_counter()
                try:
                    job, slot = next(ring)
                except StopIteration:
                    return
                batch = self._hand_over(job, slot, time.perf_counter() - asked)
                seen, bad = seen + job.rows, bad + len(batch.replaced)
                check_budget(bad, seen, self.max_bad, batch.replaced, "replaced", self.source.names)
                yield batch
        finally:
            ring.close()
            if self._ring is ring:
                self.close()

    def close(self) -> None:
        """Join the threads and end the processes of the iteration under way, if any."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _jobs(self) -> Iterator[Job]:
        """The rank's rows of each step, planned many steps at a time."""
        step, expect = self.start, getattr(self.source, "expect", None)
        while step < self.stop:
            most = min(max(1, BLOCK // self.plan.segment(step).batch), self.stop - step)
            count = self.plan.steps_together(step, most)
            epoch, positions = self.plan.rows(step, count, self.rank, self.world)
            if expect is not None:
                expect(self.order.ahead(epoch, positions))
            shard, j = self.order(epoch, positions)
            slot, copy = np.divmod(positions, self.plan.repeats)
            keys = draws.extend(draws.key(self.seed, Purpose.AUGMENT, epoch), slot, copy)
            pipeline = self._sized(epoch)
            for i in range(count):
                mixes = self._mixes(step + i, pipeline.size)
                yield Job(step + i, epoch, shard[i], j[i], keys[i], pipeline, mixes=mixes)
            step += count

    def _sized(self, epoch: int) -> Rows:
        size = self.pipeline.size if self.sides is None else self.sides(epoch)
        if size not in self._pipelines:
            self._pipelines[size] = self.pipeline.at(size)
        return self._pipelines[size]

    def _mixes(self, step: int, side: int) -> list[mixing.MixDraw | None]:
        """One draw for each micro-batch."""
        segment = self.plan.segment(step)
        share = segment.batch // self.world
        firsts = range(self.rank * share, (self.rank + 1) * share, self.micro)
        if self.mix is None or not self.mix.active(step):
            return [None] * len(firsts)
        group, size = segment.group, (side, side)
        return [mixing.draw(self.mix, step, row // group, self.micro // group, group, size) for row in firsts]

    def _fill_batch(self, job: Job, slot: Buffer, first: int, last: int) -> None:
        part = slice(first, last)
        try:
            stored, slot.label_rows[part], crc = cast(ArraySource, self.source).rows(job.shard[part], job.j[part])
        except BadSample:  # one by one, then, each replaced that must be
            return self._fill_rows(job, slot, first, last)
        job.pipeline.batch(stored, job.keys[part], slot.rows(job.pipeline)[part])
        job.prefix[part] = draws.mix(job.shard[part], job.j[part], crc, job.epoch)

    def _fill_rows(self, job: Job, slot: Buffer, first: int, last: int) -> None:
        images = slot.rows(job.pipeline)
        for row in range(first, last):
            sample, used = self._usable(job, row, images[row])
            slot.label_rows[row] = sample.label
            job.prefix[row] = draws.key(int(job.shard[row]), used, sample.crc, job.epoch)

    def _usable(self, job: Job, row: int, out: np.ndarray) -> tuple[Sample, int]:
        """The row's sample, or the next of its shard that is good: a function of (shard, j), the same on any world."""
        shard, j, key = int(job.shard[row]), int(job.j[row]), int(job.keys[row])
        first: BadSample | None = None
        for used in ((j + t) % int(self.source.counts[shard]) for t in range(TRIES + 1)):
            try:
                sample = read_into(self.source, job.pipeline, shard, used, key, out, self.laps.begin())
            except BadSample as error:
                first = first or error
                continue
            if first is not None:
                job.events.append((row, Replaced(shard, j, first.key, first.reason, used)))
            return sample, used
        raise no_usable(self.source, shard, first)

    def _hand_over(self, job: Job, slot: Buffer, wait: float) -> StepBatch:
        first, whole = self.rank * job.rows, slot.tensor(job.pipeline)
        micros = []
        for i, mixed in enumerate(job.mixes):
            part = slice(i * self.micro, (i + 1) * self.micro)
            images, labels = whole[part], slot.labels[part]
            crcs = pixel_crcs(images) if self.pixels else None
            micros.append(self.micro_batch(images, labels, first + part.start, mixed, job.prefix[part], crcs))
        return StepBatch(job.step, job.epoch, micros, wait, job.sorted_events())


class EvalLoader:
    """Every sample of a set once, in its own order: ``len()`` batches of ``batch`` rows, equal on all ranks.

    Batch b of rank r holds the samples from (b * world + r) * batch on; rows past the end repeat the last sample with
    ``valid=False``. An undecodable image is invalid too and counted; bytes that are not those indexed, and more than
    ``max_bad`` of the samples (at least 10) being bad, raise WorldError. May be iterated again and again.
    """

    eval_batch = EvalBatch

    def __init__(
        self,
        source: Source,
        pipeline: Rows,
        *,
        rank: int,
        world: int,
        batch: int,
        threads: int,
        max_bad: float = 1e-4,
        pin: bool = False,
    ):
        self.source, self.pipeline = source, pipeline
        self.rank, self.world, self.batch, self.threads = rank, world, batch, max(1, threads)
        self.max_bad = max_bad
        self.samples = int(source.counts.sum())
        self._starts = np.concatenate(([0], np.cumsum(source.counts)))
        self._slots = make_slots(batch, pipeline, pin, len(self))
        self._ring: Ring[Job, Buffer] | None = None

    def __len__(self) -> int:
        return -(-self.samples // (self.world * self.batch))

    def __iter__(self) -> Iterator[EvalBatch]:
        self.close()
        fill = self._fill_batch if batched(self.source, self.pipeline) else self._fill_rows
        chunk = self.batch if fill == self._fill_batch else chunk_rows(self.batch, self.threads)
        ring = self._ring = Ring(self._jobs(), self._slots, fill, self.threads, chunk)
        bad = 0
        try:
            for job, slot in ring:
                assert job.index is not None
                assert job.valid is not None
                events = job.sorted_events()
                bad += len(events)
                left_out = "left out of the evaluation"
                check_budget(bad, self.samples, self.max_bad, events, left_out, self.source.names)
                valid, index = torch.from_numpy(job.valid), torch.from_numpy(job.index)
                yield self.eval_batch(slot.tensor(self.pipeline), slot.labels, valid, index, events)
        finally:
            ring.close()

    def close(self) -> None:
        """Join the threads of the iteration under way, if any."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _jobs(self) -> Iterator[Job]:
        expect = getattr(self.source, "expect", None)
        for number in range(len(self)):
            index = (number * self.world + self.rank) * self.batch + np.arange(self.batch, dtype=np.int64)
            valid, index = index < self.samples, np.minimum(index, self.samples - 1)
            shard = np.searchsorted(self._starts, index, side="right") - 1
            if expect is not None and number % AHEAD == 0:
                first, last = int(shard[0]), int(index[0]) + 2 * AHEAD * self.world * self.batch
                expect(range(first, int(np.searchsorted(self._starts, min(last, self.samples - 1), side="right"))))
            keys = np.zeros(self.batch, np.uint64)  # nothing is drawn
            j = index - self._starts[shard]
            yield Job(number, 0, shard, j, keys, self.pipeline, index=index, valid=valid)

    def _fill_batch(self, job: Job, slot: Buffer, first: int, last: int) -> None:
        part = slice(first, last)
        try:
            stored, slot.label_rows[part], _ = cast(ArraySource, self.source).rows(job.shard[part], job.j[part])
        except BadSample:
            return self._fill_rows(job, slot, first, last)
        self.pipeline.batch(stored, job.keys[part], slot.rows(self.pipeline)[part])

    def _fill_rows(self, job: Job, slot: Buffer, first: int, last: int) -> None:
        assert job.valid is not None
        images = slot.rows(self.pipeline)
        for row in range(first, last):
            shard, j, out = int(job.shard[row]), int(job.j[row]), images[row]
            try:
                slot.label_rows[row] = read_into(self.source, self.pipeline, shard, j, 0, out).label
            except BadSample as error:
                if error.rotten:
                    raise WorldError(
                        f"Evaluation stopped: {error}. Restore the file from its origin, or index it again if it was "
                        f"changed on purpose (restrain data index)."
                    ) from error
                out[...] = 0
                slot.label_rows[row] = 0
                if job.valid[row]:  # padding repeats a sample that is counted already
                    job.valid[row] = False
                    job.events.append((row, Bad(shard, j, error.key, error.reason)))
