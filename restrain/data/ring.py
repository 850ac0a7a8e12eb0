"""Threads that fill a ring of reused buffers, handed over in order.

One thread deals the jobs out, in order, as buffers come free; workers fill parts of them; the consumer takes whole jobs
in order. Decoders and resizing release the GIL, so threads do what worker processes would, without copies between them.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def rows(self) -> int: ...  # to fill


Job = TypeVar("Job", bound=Sized)
Slot = TypeVar("Slot")


class _Ticket(Generic[Job, Slot]):
    """A job on its way: where it is filled, and how many parts are missing."""

    def __init__(self, job: Job, slot: Slot, parts: int):
        self.job, self.slot, self.missing = job, slot, parts
        self.error: BaseException | None = None
        self.lock, self.done = threading.Lock(), threading.Event()

    def finish(self, error: BaseException | None) -> None:
        with self.lock:
            self.missing -= 1
            self.error = self.error or error
            if self.missing == 0 or error is not None:
                self.done.set()


class Ring(Generic[Job, Slot]):
    """An iterator of (job, slot), each filled by ``fill(job, slot, first row, last row)``, in the order of ``jobs``.

    A slot is filled again only after the job two later was asked for: copies to a device are asynchronous, and the one
    of the last job may still run when the next is asked for. So of R slots, R - 2 are read ahead. What a worker or the
    iterator of jobs raises is raised by ``next`` when the job's turn comes, and ends the ring.
    """

    HELD = 2

    def __init__(
        self,
        jobs: Iterator[Job],
        slots: list[Slot],
        fill: Callable[[Job, Slot, int, int], None],
        threads: int,
        chunk: int,
    ):
        """threads: workers. chunk: rows a worker fills at a time."""
        if len(slots) <= self.HELD:
            raise ValueError(f"a ring needs more than {self.HELD} slots")
        self._fill, self._chunk, self._closing = fill, chunk, False
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._parts: queue.SimpleQueue = queue.SimpleQueue()
        self._dealt: queue.SimpleQueue = queue.SimpleQueue()
        self._held: deque[_Ticket[Job, Slot]] = deque()
        for slot in slots:
            self._free.put(slot)
        self._threads = [threading.Thread(target=self._deal, args=(jobs,), name="restrain-deal", daemon=True)]
        self._threads += [
            threading.Thread(target=self._work, name=f"restrain-data-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[tuple[Job, Slot]]:
        return self

    def __next__(self) -> tuple[Job, Slot]:
        if self._closing:
            raise StopIteration
        if len(self._held) == self.HELD:
            self._free.put(self._held.popleft().slot)
        ticket = self._dealt.get()
        if isinstance(ticket, _Ticket):
            ticket.done.wait()
            error = ticket.error
        else:
            error = ticket or StopIteration()  # the end, or what dealing raised
        if error is not None:
            self.close()
            raise error
        self._held.append(ticket)
        return ticket.job, ticket.slot

    def close(self) -> None:
        """Stop and join the threads; a part that is being filled is finished. May be called again."""
        self._closing = True
        self._free.put(None)
        self._dealt.put(None)
        for _ in self._threads[1:]:
            self._parts.put(None)
        for thread in self._threads:
            thread.join()

    def _deal(self, jobs: Iterator[Job]) -> None:
        try:
            for job in jobs:
                slot = self._free.get()
                if slot is None or self._closing:
                    return
                starts = range(0, job.rows, self._chunk)
                ticket = _Ticket(job, slot, len(starts))
                for first in starts:
                    self._parts.put((ticket, first, min(first + self._chunk, job.rows)))
                self._dealt.put(ticket)
            self._dealt.put(None)
        except BaseException as error:  # the consumer must hear of it, or it waits for ever
            self._dealt.put(error)

    def _work(self) -> None:
        while (part := self._parts.get()) is not None:
            ticket, first, last = part
            error = StopIteration() if self._closing else None
            try:
                if error is None and ticket.error is None:
                    self._fill(ticket.job, ticket.slot, first, last)
            except BaseException as caught:  # as above
                error = caught
            ticket.finish(error)
