"""Processes that fill rows of batches, for augmentations that hold Python's lock: as fast as there are cores.

They are forked when a loader is iterated, so they have its source and pipeline, and they write into buffers that lie in
shared memory. A thread of the ring drives each. What a row holds is a function of its key, so it is what a thread would
make.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from restrain.data.filling import Buffer, Job, Rows
from restrain.data.laps import Laps
from restrain.errors import WorldError

Fill = Callable[[Job, Buffer, int, int], None]


class Workers:
    """``fill`` may be called by as many threads as there are processes; each call takes a free one."""

    def __init__(self, count: int, fill: Fill, slots: Sequence[Buffer], sized: Callable[[int], Rows], laps: Laps):
        """fill: what a process calls, with the slot of its own that shares the memory. sized: epoch -> its pipeline."""
        self._laps = laps
        self._numbers = {id(slot): number for number, slot in enumerate(slots)}
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        # Forked, as torch's own loaders are: a source holds open files and maps that no other process could be given.
        context = multiprocessing.get_context("fork")
        self._all = [_Worker(context, fill, slots, sized, laps) for _ in range(count)]
        for worker in self._all:
            self._free.put(worker)

    def fill(self, job: Job, slot: Buffer, first: int, last: int) -> None:
        """Raises what the process raised, WorldError where it ended."""
        worker = self._free.get()
        try:
            part = slice(first, last)
            rows = (job.shard[part], job.j[part], job.keys[part])
            found = worker.ask((self._numbers[id(slot)], job.step, job.epoch, job.rows, first, rows))
        finally:
            self._free.put(worker)
        prefix, events, sums = found
        job.prefix[part] = prefix
        job.events.extend(events)
        self._laps.merge(sums)

    def close(self) -> None:
        """End the processes."""
        for worker in self._all:
            worker.close()


class _Worker:
    def __init__(self, context: Any, fill: Fill, slots: Sequence[Buffer], sized: Callable[[int], Rows], laps: Any):
        self._pipe, other = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(other, self._pipe, fill, slots, sized, laps), name="restrain-data", daemon=True
        )
        self.process.start()
        other.close()

    def ask(self, request: tuple) -> tuple:
        try:
            self._pipe.send(request)
            good, answer = self._pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
            raise WorldError(
                f"A data process {how} (signal 9 is most often the system, out of memory). The run goes on from its "
                f"last checkpoint; fewer data.processes, or smaller images, take less memory."
            ) from None
        if not good:
            raise answer
        return answer

    def close(self) -> None:
        with suppress(OSError):  # told, since a process forked after it holds this end of its pipe too
            self._pipe.send(None)
        self._pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(
    pipe: Connection, parents: Connection, fill: Fill, slots: Sequence[Buffer], sized: Callable[[int], Rows], laps: Any
) -> None:
    """What a process does until its pipe is closed."""
    import torch

    parents.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the run decides when to end, and closes the pipe then
    torch.set_num_threads(1)  # also: threads of torch's that were started before the fork are not there
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            return
        if request is None:
            return
        number, step, epoch, rows, first, parts = request
        last = first + len(parts[0])
        shard, j, keys = (_placed(part, rows, first) for part in parts)
        job = Job(step, epoch, shard, j, keys, sized(epoch))
        before = laps.sums()
        try:
            fill(job, slots[number], first, last)
            answer = (True, (job.prefix[first:last], job.events, laps.sums().since(before)))
        except BaseException as error:
            answer = (False, error)
        pipe.send(answer)


def _placed(part: np.ndarray, rows: int, first: int) -> np.ndarray:
    """The part where it stands among all rows."""
    whole = np.zeros(rows, part.dtype)
    whole[first : first + len(part)] = part
    return whole
