"""Resident memory of this process, and its peak since a moment. Linux, glibc."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path


def now(field: str = "VmRSS") -> int:
    """Bytes that are resident, or another field of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def own() -> int:
    """Resident bytes that belong to no file. Pages of libraries come and go with what else the machine does."""
    return now("RssAnon") + now("RssShmem")


def peak() -> int:
    """The most that was resident since the last :func:`reset`."""
    return now("VmHWM")


def reset() -> int:
    """Give freed memory back to the system, forget the peak, and say what is resident then."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return now()
