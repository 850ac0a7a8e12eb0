"""Where the tensor that a rank holds lies in the whole one: what checkpoints, initial weights and norms go by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A box of a local tensor: its index there, and where it begins in the whole one."""

    at: tuple[slice, ...]
    offset: tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """``shape``: of the whole. ``pieces``: what the local tensor consists of. ``copies``: ranks that hold the same.
    ``saves``: whether this rank is the one of them that saves it."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    copies: int = 1
    saves: bool = True

    @property
    def elements(self) -> int:
        """How many the rank holds."""
        return sum(math.prod(s.stop - s.start for s in piece.at) for piece in self.pieces)

    def saved(self, local: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        """What this rank gives to a checkpoint: views of its tensor, with their offsets in the whole."""
        return [(local[piece.at], piece.offset) for piece in self.pieces] if self.saves else []

    @torch.no_grad()
    def fill(self, local: Tensor, box: Callable[[Tensor, tuple[int, ...]], object]) -> None:
        """Fill each piece in place by ``box(view of the local tensor, offset in the whole)``."""
        for piece in self.pieces:
            box(local[piece.at], piece.offset)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that torch has cut over ranks; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def whole(shape: Sequence[int], copies: int = 1, saves: bool = True) -> Held:
    """A rank that holds all of it."""
    shape = tuple(shape)
    return Held(shape, (Piece(tuple(slice(0, n) for n in shape), (0,) * len(shape)),), copies, saves)


Segments = Sequence[tuple[int, int]]  # [start, stop) in the whole, one after the other in the local tensor


def cut_along(
    shape: Sequence[int],
    dim: int | None,
    segments: Segments,
    rows: tuple[int, int] | None,
    copies: int,
    saves: bool,
) -> Held:
    """Of a tensor that was first cut into ``segments`` along ``dim`` (None: not), then along its first dimension.

    ``rows``: the range of the first dimension, of what the first cut left, that this rank holds; None: all.
    """
    shape = tuple(shape)
    if dim is None:
        dim, segments = 0, ((0, shape[0]),) if shape else ()
        if not shape:
            return whole(shape, copies, saves)
    before = [stop - start for start, stop in segments]
    first = sum(before) if dim == 0 else shape[0]
    low, high = rows if rows is not None else (0, first)
    pieces, at = [], 0
    for start, length in zip((start for start, _ in segments), before, strict=True):
        if dim == 0:  # the segment's rows within [low, high)
            begin, end = max(at, low), min(at + length, high)
            if begin < end:
                index = (slice(begin - low, end - low), *(slice(0, n) for n in shape[1:]))
                pieces.append(Piece(index, (start + begin - at, *(0 for _ in shape[1:]))))
        elif low < high:
            index = [slice(0, high - low), *(slice(0, n) for n in shape[1:])]
            index[dim] = slice(at, at + length)
            offset = [low, *(0 for _ in shape[1:])]
            offset[dim] = start
            pieces.append(Piece(tuple(index), tuple(offset)))
        at += length
    return Held(shape, tuple(pieces), copies, saves)


def index_of(offset: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The index of the box of that shape that begins at ``offset``."""
    return tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
