"""Where the time of the threads that fill batches goes: reading, decoding, augmenting, writing the row."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

STAGES = ("read", "decode", "augment", "collate")
EVERY = 16  # rows of which one is timed: eight clock readings a row would be seen


class Laps:
    """Sums over the timed rows of all threads; any thread may add to them and look at them."""

    def __init__(self, every: int = EVERY):
        self.every = every
        self._rows, self._lock = 0, threading.Lock()
        self._sums = Sums()

    def begin(self) -> Lap | None:
        """A watch for the row that a thread begins, where it is one of those that are timed."""
        self._rows += 1  # two threads may count one row between them: which rows are timed does not matter
        return None if self._rows % self.every else Lap(self)

    def add(self, stage: str, wall: float, cpu: float, done: bool) -> None:
        with self._lock:
            self._sums.wall[stage] += wall
            self._sums.cpu[stage] += cpu
            self._sums.rows += done

    def merge(self, other: Sums) -> None:
        """Add what another process timed."""
        with self._lock:
            for stage in STAGES:
                self._sums.wall[stage] += other.wall[stage]
                self._sums.cpu[stage] += other.cpu[stage]
            self._sums.rows += other.rows

    def sums(self) -> Sums:
        """A copy of the sums so far."""
        with self._lock:
            return Sums(self._sums.rows, dict(self._sums.wall), dict(self._sums.cpu))


@dataclass
class Sums:
    """rows timed; seconds of wall and of CPU time a stage."""

    rows: int = 0
    wall: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    cpu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def since(self, before: Sums) -> Sums:
        return Sums(self.rows - before.rows, _minus(self.wall, before.wall), _minus(self.cpu, before.cpu))

    def shares(self) -> dict[str, float]:
        """Stage -> its share of the wall time of all; empty where nothing was timed."""
        total = sum(self.wall.values())
        return {stage: seconds / total for stage, seconds in self.wall.items()} if total > 0 else {}


class Lap:
    """One row's watch: each lap goes to the stage that it is told."""

    def __init__(self, laps: Laps):
        self._laps = laps
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def lap(self, stage: str) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        self._laps.add(stage, wall - self._wall, cpu - self._cpu, stage == STAGES[-1])
        self._wall, self._cpu = wall, cpu


def _minus(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {stage: seconds - before[stage] for stage, seconds in now.items()}
