"""Which part of each tensor each rank of a layout holds, worked out from shapes alone: no process, no memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from restrain.parallel import tensor
from restrain.parallel.held import Held, cut_along, whole
from restrain.parallel.layout import SHARDED, Layout


@dataclass(frozen=True)
class Partition:
    """``shapes``: of the whole parameters by name. ``local``: what tensor parallelism leaves of them. ``cuts``: how."""

    layout: Layout
    shapes: Mapping[str, tuple[int, ...]]
    local: Mapping[str, tuple[int, ...]]
    cuts: Mapping[str, tensor.Cut]

    def is_loose(self, name: str) -> bool:
        """Whether a parameter is whole on each rank of a shard group: a number has no dimension to be cut along."""
        return self.layout.strategy not in SHARDED or not self.local[name]

    def held(self, name: str, dims: int, rank: int) -> Held:
        """Of the parameter ``name``, or a tensor of as many ``dims`` that belongs to it; what has none, such as an
        optimizer's counter, is whole on each rank."""
        layout = self.layout
        replica, shard, part = layout.place(rank)
        if dims == 0 and self.local[name]:
            return whole((), layout.world, rank == 0)
        rows = None if self.is_loose(name) else chunk(self.local[name][0], shard, layout.shard)
        cut = self.cuts.get(name)
        copies = layout.replicas * (layout.shard if rows is None else 1) * (layout.tensor if cut is None else 1)
        saves = replica == 0 and (rows is not None or shard == 0) and (cut is not None or part == 0)
        if cut is None:
            return cut_along(self.shapes[name], None, (), rows, copies, saves)
        return cut_along(cut.shape, cut.dim, cut.segments, rows, copies, saves)


def cut_model(model: nn.Module, layout: Layout, rank: int, group: Any = None) -> Partition:
    """Cut a model for this rank's tensor group, in place, and say what it then holds.

    The model is on the meta device where ``layout.tensor`` is more than 1. UserError where it cannot be cut so.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    cuts = {}
    if layout.tensor > 1:
        tensor.check(model, layout.tensor)
        cuts = tensor.apply(model, rank % layout.tensor, layout.tensor, group)
    return Partition(layout, shapes, {name: tuple(p.shape) for name, p in model.named_parameters()}, cuts)


def partition_of(model: nn.Module, layout: Layout, rank: int) -> Partition:
    """As :func:`cut_model`, of a copy: ``model`` is on the meta device and stays as it is."""
    return cut_model(copy.deepcopy(model), layout, rank)


def chunk(rows: int, part: int, parts: int) -> tuple[int, int]:
    """The range of rows that torch gives to one of so many ranks (``torch.chunk``)."""
    size = -(-rows // parts)
    return min(part * size, rows), min((part + 1) * size, rows)


def elements(partition: Partition, tensors: Mapping[str, Tensor], rank: int) -> int:
    """Elements that a rank holds of these parameters."""
    return sum(partition.held(name, tensors[name].ndim, rank).elements for name in tensors)
