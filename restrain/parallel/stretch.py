"""A run of elements of a flattened tensor: how ZeRO cuts parameters over ranks, in the coordinates of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from restrain.parallel.held import Held

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset and shape


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The elements [start, stop) of a tensor in row-major order, as boxes (offset, shape) in that order.

    A range that begins and ends within rows takes one box in the middle and up to two for each further dimension.
    """
    if start >= stop:
        return
    if not shape:
        yield (), ()
        return
    inner = math.prod(shape[1:])
    first, last = -(-start // inner), stop // inner  # the rows [first, last) are whole
    if first > last:  # all within the row `last`
        yield from _inside(last, shape, start - last * inner, stop - last * inner)
        return
    if start < first * inner:
        yield from _inside(first - 1, shape, start - (first - 1) * inner, inner)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if last * inner < stop:
        yield from _inside(last, shape, 0, stop - last * inner)


def _inside(row: int, shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    for offset, size in boxes(shape[1:], start, stop):
        yield (row, *offset), (1, *size)


@dataclass(frozen=True)
class Stretch(Held):
    """A rank that holds the elements [start, stop) of a tensor of ``shape`` as a flat tensor of so many numbers."""

    start: int = 0
    stop: int = 0

    def parts(self, local: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """Views of the local tensor in the form of boxes of the whole, and where each begins there."""
        at = 0
        for offset, shape in boxes(self.shape, self.start, self.stop):
            size = math.prod(shape)
            yield local[at : at + size].view(shape), offset
            at += size

    @property
    def elements(self) -> int:
        return self.stop - self.start

    def saved(self, local: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        return list(self.parts(local)) if self.saves else []

    @torch.no_grad()
    def fill(self, local: Tensor, box: Callable[[Tensor, tuple[int, ...]], None]) -> None:
        for view, offset in self.parts(local):
            box(view, offset)

    @torch.no_grad()
    def cut(self, whole: Tensor, local: Tensor) -> None:
        local.copy_(whole.reshape(-1)[self.start : self.stop])


def stretch(shape: tuple[int, ...], start: int, stop: int) -> Stretch:
    """Of a tensor of which each element lies on one rank alone."""
    return Stretch(shape, (), 1, True, start, stop)
