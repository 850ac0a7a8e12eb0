"""How fast a loader is: images a second, and the CPU time of an image in this process and in those it started."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Rate:
    """images_per_s; cpu_ms: CPU milliseconds an image, of all processes together."""

    images_per_s: float
    cpu_ms: float


def measure(batches: Iterable[Any], images: int) -> Rate:
    """The rate of a loader that gives ``images`` in all. Its worker processes may live on, or end meanwhile."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in batches:
        pass
    wall = time.perf_counter() - wall
    return Rate(images / wall, (cpu_seconds() - cpu) / images * 1e3)


def cpu_seconds() -> float:
    """CPU time so far of this process, of the children that have ended, and of those that live (on Linux)."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in usages) + sum(map(_seconds, _children(os.getpid())))


def _children(process: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        below = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has just ended, or this is no Linux
        return []
    return [*below, *(inner for child in below for inner in _children(child))]


def _seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS
