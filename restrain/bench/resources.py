"""What a process holds and what its device could do: peaks of memory and of arithmetic."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.distributed as dist

from restrain.parallel import precision

MATRIX = 1024  # side of the product that says how fast a CPU multiplies
LONG = 0.5  # seconds in which it is tried


class Growth:
    """How far memory grows, at most, beyond what is held when this is made.

    On a GPU what torch's allocator hands out; on a CPU resident memory (VmHWM of Linux, which is reset through
    ``/proc/self/clear_refs``).
    """

    def __init__(self, device: torch.device):
        self.device, self.before = device, None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # no Linux, or not allowed
            return
        self.before = _resident()

    @property
    def bytes(self) -> int | None:
        """So far; None where it cannot be known."""
        now = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident()
        return None if self.before is None or now is None else max(0, now - self.before)


def _resident() -> int | None:
    """The largest resident memory since it was last forgotten."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def multiplies(number_format: str) -> float:
    """FLOP/s of a product of two large matrices in this process, on the CPU, while the other ranks multiply too."""
    dtype = precision.autocast_dtype(number_format) or precision.dtype_of_weights(number_format)
    a = torch.ones(MATRIX, MATRIX, dtype=dtype)
    torch.mm(a, a)
    if dist.is_initialized():
        dist.barrier()
    best, end = float("inf"), time.perf_counter() + LONG
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - began)
    return 2.0 * MATRIX**3 / best
