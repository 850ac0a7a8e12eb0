"""Threads and reused buffers: in order, never while in use, never for ever."""

import threading
import time
from dataclasses import dataclass

import pytest

from restrain.data.ring import Ring


@dataclass
class Job:
    number: int
    rows: int = 6


def ring_of(fill, jobs=30, slots=4, threads=3, chunk=2):
    return Ring(
        iter(jobs if isinstance(jobs, list) else [Job(n) for n in range(jobs)]), slots_of(slots), fill, threads, chunk
    )


def slots_of(n):
    return [[None] * 6 for _ in range(n)]


def write(job, slot, first, last):
    time.sleep(0.0005 * ((job.number * 7 + first) % 3))
    slot[first:last] = [job.number] * (last - first)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_in_order_and_whole(threads):
    assert [(job.number, slot[:]) for job, slot in ring_of(write, threads=threads)] == [(n, [n] * 6) for n in range(30)]


def test_a_batch_stays_until_the_one_two_later_is_asked_for():
    ring, before = ring_of(write), None
    for job, slot in ring:
        time.sleep(0.002)  # the workers have every chance to overwrite
        if before is not None:
            assert before[1] == [before[0]] * 6
        assert slot == [job.number] * 6
        before = (job.number, slot)


def test_reads_ahead_no_further_than_its_slots():
    started = []

    def furthest(expected):
        deadline = time.monotonic() + 10
        while max(started, default=-1) < expected and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.03)  # time enough to go too far
        return max(started)

    ring = ring_of(lambda job, slot, first, last: started.append(job.number), slots=5)
    next(ring)
    assert furthest(4) == 4  # five slots, none given back yet
    next(ring)
    next(ring)
    assert furthest(5) == 5
    ring.close()


def test_an_error_arrives_in_its_turn_and_ends_the_ring():
    def fill(job, slot, first, last):
        if job.number == 3 and first == 2:
            raise ValueError("at three")

    ring = ring_of(fill)
    seen = [next(ring)[0].number for _ in range(3)]
    with pytest.raises(ValueError, match="at three"):
        next(ring)
    assert seen == [0, 1, 2]
    assert not any(thread.is_alive() for thread in ring._threads)


def test_an_error_of_the_jobs_arrives_too():
    def jobs():
        yield Job(0)
        raise KeyError("no more")

    ring = Ring(jobs(), slots_of(3), write, 1, 6)
    next(ring)
    with pytest.raises(KeyError, match="no more"):
        next(ring)


@pytest.mark.parametrize("after", [0, 1, 7])
def test_close_joins_its_threads(after):
    before = threading.active_count()
    ring = ring_of(write)
    for _ in range(after):
        next(ring)
    ring.close()
    ring.close()
    assert threading.active_count() == before
    assert list(ring) == []


def test_close_wakes_a_waiting_consumer():
    gate = threading.Event()
    ring = ring_of(lambda *_: gate.wait(5), threads=1)
    consumer = threading.Thread(target=lambda: list(ring))
    consumer.start()
    closer = threading.Thread(target=ring.close)
    closer.start()
    gate.set()
    consumer.join(5)
    closer.join(5)
    assert not consumer.is_alive()
