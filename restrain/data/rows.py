"""Rows of a batch that are stored as the network takes them: windows of tokens, made-up sequences."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch

from restrain.data.laps import Lap


class StoredRows:
    """Copies what is stored into the rows of a batch; ``size``: steps of a row, of which there is one number."""

    batched = True
    dtype: torch.dtype
    label_dtype: torch.dtype
    size: int
    shape: tuple[int, ...]

    def at(self, size: int) -> Self:
        raise ValueError(f"rows of {self.size} steps have no other length ({size})")

    def __call__(self, data: np.ndarray, key: int, out: np.ndarray, lap: Lap | None = None) -> None:
        out[...] = data
        if lap is not None:
            lap.lap("collate")

    def batch(self, stored: np.ndarray, keys: np.ndarray, out: np.ndarray) -> None:
        out[...] = stored


class SequenceRows(StoredRows):
    """Sequences of the adding problem, float32 [T, 2]; their label is the target, float32."""

    dtype = label_dtype = torch.float32

    def __init__(self, length: int):
        self.size, self.shape = length, (length, 2)


class TokenRows(StoredRows):
    """Windows of tokens, int64 [T + 1]; document numbers stand where images have their label."""

    dtype, label_dtype = torch.int64, torch.int32

    def __init__(self, context: int, documents: bool):
        self.size, self.shape = context, (context + 1,)
        self.label_shape = (context + 1,) if documents else (0,)
