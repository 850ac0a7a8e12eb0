"""How much of a device a run uses: FLOP/s of the model's arithmetic, beside the peak they are divided by.

Model FLOP/s utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): a training step counts three forward
passes of multiply-adds (one forward, two backward), two FLOP each; what recomputation adds does not count. Peaks are
the makers' figures for *dense* arithmetic: the larger ones on data sheets are with structured sparsity.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

TERA = 1e12
# name of the device (the first that fits) -> dense TFLOP/s in bf16 or fp16 with tensor cores, fp32, fp64
PEAKS: list[tuple[str, float, float, float]] = [
    ("H200", 989.0, 67.0, 67.0),
    ("H100 PCIe", 756.0, 51.0, 51.0),
    ("H100 NVL", 835.0, 60.0, 60.0),
    ("H100", 989.0, 67.0, 67.0),
    ("GH200", 989.0, 67.0, 67.0),
    ("B200", 2250.0, 80.0, 40.0),
    ("A100", 312.0, 19.5, 19.5),
    ("A800", 312.0, 19.5, 19.5),
    ("A40", 149.7, 37.4, 0.58),
    ("A10", 125.0, 31.2, 0.49),
    ("L40S", 362.0, 91.6, 1.4),
    ("L40", 181.0, 90.5, 1.4),
    ("L4", 121.0, 30.3, 0.47),
    ("V100", 125.0, 15.7, 7.8),
    ("T4", 65.0, 8.1, 0.25),
    ("RTX 4090", 165.2, 82.6, 1.3),
    ("RTX 3090", 71.0, 35.6, 0.56),
]
COLUMN = {"bf16": 1, "fp16": 1, "fp8": 1, "fp32": 2, "fp64": 3}  # attention and head are bf16 under fp8, too


def peak(device: str, precision: str) -> float | None:
    """Dense peak in FLOP/s of a device's name in a precision; None where it is not known."""
    for row in PEAKS:
        if row[0].lower() in device.lower():
            return float(row[COLUMN[precision]]) * TERA if precision in COLUMN else None
    return None


@dataclass(frozen=True)
class Hardware:
    """What a run computes on: ``devices`` of one kind, one a process."""

    name: str
    devices: int
    precision: str
    cuda: bool

    @staticmethod
    def of(device: torch.device, devices: int, precision: str) -> Hardware:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return Hardware(name, devices, precision, device.type == "cuda")


class Throughput:
    """Turns images a second into FLOP/s.

    The multiply-adds of an image are counted once, in a thread, when they are first asked for: neither the first step
    nor any other waits for it.
    """

    def __init__(self, hardware: Hardware, macs: Callable[[], int]):
        self.hardware = hardware
        self._macs, self._count = macs, None
        self._counting: threading.Thread | None = None
        self._closed = False

    def told(self, images_per_second: float) -> str:
        """``12.3 TFLOP/s, 4 % of 312 (A100, bf16 dense)``; empty until it is known."""
        if self._counting is None and not self._closed:
            self._counting = threading.Thread(target=self._run, name="flops")
            self._counting.start()
        if self._count is None or images_per_second <= 0:
            return ""
        flops = 6.0 * self._count * images_per_second
        amount = f"{flops / TERA:.3g} TFLOP/s"
        each = peak(self.hardware.name, self.hardware.precision) if self.hardware.cuda else None
        if each is None:
            return amount
        whole = each * self.hardware.devices
        name = f"{self.hardware.devices} x {self.hardware.name}" if self.hardware.devices > 1 else self.hardware.name
        return f"{amount}, {100 * flops / whole:.0f} % of {whole / TERA:.0f} ({name}, {self.hardware.precision} dense)"

    def close(self) -> None:
        """Wait for the count, if it is under way: an interpreter must not end while a thread is inside of torch."""
        self._closed = True
        if self._counting is not None:
            self._counting.join()

    def memory(self) -> str:
        """``21.3 of 79 GiB`` of a GPU, at most so far; of a CPU what this process holds."""
        if self.hardware.cuda:
            most, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
            return f"{most / 2**30:.1f} of {total / 2**30:.0f} GiB"
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return ""
        return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"

    def _run(self) -> None:
        try:
            self._count = self._macs()
        except Exception:  # a model that cannot be counted trains all the same
            self._count = None
