"""What the loaders hand over."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from restrain.data.checksum import crc32
from restrain.data.mix import MixDraw


@dataclass(frozen=True)
class Replaced:
    """A bad sample (shard, j) and the ``used_j`` of the same shard that took its place."""

    shard: int
    j: int
    key: str
    reason: str
    used_j: int


@dataclass(frozen=True)
class Bad:
    """A sample that evaluation left out."""

    shard: int
    j: int
    key: str
    reason: str


@dataclass
class MicroBatch:
    """Rows ``row`` to ``row + b`` of the step's canonical list.

    images: uint8 [b, C, H, W], channels-last; labels: int64 [b]. Both are views of a buffer that is reused: valid until
    the step two later is asked for. prefix: uint64 [b], mix(shard, j, crc, epoch), the ledger's row hash but for
    the position. pixels: uint64 [b], CRC-32 of the rows as handed over, or None.
    """

    images: torch.Tensor
    labels: torch.Tensor
    row: int
    mix: MixDraw | None
    prefix: np.ndarray
    pixels: np.ndarray | None


@dataclass
class StepBatch:
    """What one rank trains in one optimizer step. wait: seconds that the consumer waited for it."""

    step: int
    epoch: int
    micros: list[MicroBatch]
    wait: float
    replaced: list[Replaced]


@dataclass
class EvalBatch:
    """images: uint8 [b, C, H, W], channels-last; labels: int64 [b]; valid: bool [b], false for padding and undecodable
    images; index: int64 [b], global number of the sample. Views of a buffer that is reused, as in `MicroBatch`."""

    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    index: torch.Tensor
    bad: list[Bad] = field(default_factory=list)


def pixel_crcs(images: torch.Tensor) -> np.ndarray:
    """CRC-32 of each row's bytes, uint64 [b]: of images (uint8 [b, C, H, W], channels-last) in memory order."""
    rows = (images.permute(0, 2, 3, 1) if images.ndim == 4 else images).cpu().numpy()
    return np.array([crc32(row) for row in rows], np.uint64)
