"""The one vector that ranks add up each step: loss, counts, flags and the ledger's hash, in float64.

Everything ranks must agree on rides in it, so a step has one small reduction besides the gradients'. It is read by the
host one step late: by then its copy has arrived, and nothing waits for the device.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from restrain.run import ledger
from restrain.survival import signals
from restrain.survival.signals import Flag

# The first three are known on the device, the others on the host.
FIELDS = ("loss", "correct", "grad_norm", "wait", "replaced", "save", "stop", "flag")
HASHES = len(FIELDS)  # where the limbs of the ledger's hash begin, then those of the pixel hash
WIDTH = HASHES + 8
IN_FLIGHT = 4  # host buffers in rotation; two are ever in use


@dataclass(slots=True)
class Reading:
    """One step's sums over all ranks, on the host. ``step`` counts steps done, so the first one is 1."""

    step: int
    epoch: int
    lr: float
    loss: float
    correct: float
    grad_norm: float
    wait: float
    replaced: int
    save: bool  # rank 0's clock says that a checkpoint is due
    stop: bool  # a rank must not go on (its lease is lost)
    flag: Flag  # the highest signal that any rank received
    hash: int
    pixels: int
    ended: float  # the host's clock (perf_counter) when the step had been issued
    dropped: float | None = None  # share of the blocks' work that was left out, equal on all ranks

    @property
    def leaving(self) -> bool:
        return self.flag != Flag.NONE or self.stop


class StepVector:
    """Packs, reduces and reads the vector of each step, in order."""

    def __init__(self, device: torch.device, world: int):
        self.device, self.world = device, world
        self.pending: deque[tuple[int, int, float, float | None, float, Tensor, torch.cuda.Event | None]] = deque()
        self.cuda = device.type == "cuda"
        self.buffers = [torch.empty(WIDTH, dtype=torch.float64, pin_memory=self.cuda) for _ in range(2 * IN_FLIGHT)]
        self.turn = 0

    def _buffer(self) -> Tensor:
        self.turn = (self.turn + 1) % len(self.buffers)
        return self.buffers[self.turn]

    def reduce(
        self, loss: Tensor, correct: Tensor, host: list[float], hash: int, pixels: int, square: Tensor | None = None
    ) -> Tensor:
        """The vector on the device, summed over ranks. ``host``: the fields from ``wait`` on, this rank's share;
        ``square``: its share of the squared gradient norm, where gradients are cut over ranks."""
        values = [0.0, 0.0, 0.0, *host, *ledger.limbs(hash), *ledger.limbs(pixels)]
        if self.cuda:
            staging = self._buffer()
            staging.copy_(torch.tensor(values, dtype=torch.float64))
            vector = staging.to(self.device, non_blocking=True)
        else:
            vector = torch.tensor(values, dtype=torch.float64)
        vector[0] = loss
        vector[1] = correct
        if square is not None:
            vector[2] = square
        if self.world > 1:
            dist.all_reduce(vector)
        return vector

    def keep(self, step: int, epoch: int, lr: float, vector: Tensor, dropped: float | None = None) -> None:
        """Start the copy to the host of a finished step's vector; the other arguments are the host's already."""
        event = None
        if self.cuda:
            host = self._buffer()
            host.copy_(vector, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            vector = host
        self.pending.append((step, epoch, lr, dropped, time.perf_counter(), vector, event))

    def read(self, leave: int = 0) -> list[Reading]:
        """Readings of all but the newest ``leave`` kept steps, oldest first."""
        readings = []
        while len(self.pending) > leave:
            step, epoch, lr, dropped, ended, vector, event = self.pending.popleft()
            if event is not None:
                event.synchronize()
            v = vector.tolist()
            readings.append(
                Reading(
                    step=step,
                    epoch=epoch,
                    lr=lr,
                    loss=v[0],
                    correct=v[1],
                    grad_norm=v[2],
                    wait=v[3],
                    replaced=int(v[4]),
                    save=v[5] > 0,
                    stop=v[6] > 0,
                    flag=signals.decode(v[7]) if v[7] else Flag.NONE,
                    hash=ledger.from_limbs(v[HASHES : HASHES + 4]),
                    pixels=ledger.from_limbs(v[HASHES + 4 :]),
                    ended=ended,
                    dropped=dropped,
                )
            )
        return readings
