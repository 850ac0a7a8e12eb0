"""How many bytes a rank of a layout holds of a model in training, worked out from shapes: no process, no memory.

What ``restrain check`` prints, what a budget of recomputation has left, and whether the host can take what is offloaded
are all counted here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from restrain.models import residual_blocks
from restrain.parallel.layout import SHARDED, ZERO, Layout
from restrain.parallel.partition import partition_of
from restrain.parallel.zero_shards import share

BUCKET = 50_000_000  # elements of a reduction or a gather of ZeRO at most; DeepSpeed's own default takes 2 GB at once


@dataclass(frozen=True)
class Slots:
    """Bytes that an optimizer keeps for one parameter: ``cut``, in tensors of its shape; ``loose``, in counters."""

    cut: int
    loose: int = 0


@dataclass(frozen=True)
class Share:
    """Bytes of one rank, at their most between a step's last backward pass and its update.

    ``weights`` with buffers. ``master``: the part of the weights that ZeRO updates, a copy. ``average``: the moving
    average. ``buffers``: what DeepSpeed keeps for gradients besides. ``gathered``: what a rank has for a while of the
    largest part that it gathers at once, not in ``total``. ``parameters``: elements that it holds.
    """

    weights: int
    master: int
    gradients: int
    optimizer: int
    average: int
    buffers: int = 0
    gathered: int = 0
    parameters: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.master + self.gradients + self.optimizer + self.average + self.buffers

    def on_device(self, layout: Layout, offloaded: bool) -> int:
        """Those that are where the rank computes, ``offloaded`` with ``parallel.offload=cpu``."""
        if not offloaded:
            return self.total
        return self.weights

    def hosted(self, layout: Layout) -> int:
        """Those that are in the host's memory with ``parallel.offload=cpu``. DeepSpeed's stages 1 and 2 have the
        updated weights there once more, on their way to the device."""
        again = self.master if layout.strategy != "zero3" else 0
        return self.master + self.gradients + self.optimizer + self.average + again


def share_of(
    model: nn.Module,
    layout: Layout,
    rank: int,
    slots: Mapping[str, Slots],
    averages: bool = False,
    accumulates: bool = False,
) -> Share:
    """
    Args:
        model: whole; on the meta device where ``layout`` cuts it.
        slots: of each parameter, by name.
        averages: whether there is a moving average.
        accumulates: whether a step has several micro-batches. Until the last one a rank then has whole gradients: they
            are added over ranks once.
    """
    zero = layout.strategy in ZERO
    held = _held(model, layout, rank)
    counted = dict.fromkeys(("weights", "master", "gradients", "optimizer", "average"), 0)
    for name, parameter in model.named_parameters():
        item, (local, mine) = parameter.element_size(), held[name]
        trained = parameter.requires_grad
        counted["weights"] += item * (local if zero and layout.strategy != "zero3" else mine)
        counted["master"] += 4 * mine if zero and trained else 0
        counted["gradients"] += item * (local if accumulates else mine) if trained else 0
        counted["average"] += item * mine if averages else 0
        if name in slots:  # of a vector of ZeRO's there is one counter, whatever it holds
            counted["optimizer"] += slots[name].cut * mine // max(1, parameter.numel())
            counted["optimizer"] += 0 if zero else slots[name].loose
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    counted["weights"] += buffers
    counted["average"] += buffers if averages else 0
    return Share(
        **counted,
        buffers=_kept_by_deepspeed(model, layout, rank) if zero else 0,
        gathered=_gathered(model, layout, held),
        parameters=sum(mine for _, mine in held.values()),
    )


def _kept_by_deepspeed(model: nn.Module, layout: Layout, rank: int) -> int:
    """Stage 3 keeps a bucket. Stages 1 and 2 keep of each parameter that they cut, where a rank's part of all ends, the
    whole gradient on both sides; here in the model's order, while theirs has those without decay last."""
    if layout.strategy == "zero3":
        return 4 * bucket(model)
    trained = [(p.numel(), p.element_size()) for p in model.parameters() if p.requires_grad]
    start, stop = share(sum(size for size, _ in trained), rank, layout.world)
    at = found = 0
    for size, item in trained:
        inside = max(0, min(stop, at + size) - max(start, at))
        found += item * (size - inside) if inside else 0
        at += size
    return found


def bucket(model: nn.Module) -> int:
    """Elements of the buffer that ZeRO's stage 3 keeps for gradients on their way."""
    sizes = [sum(p.numel() for p in block.parameters()) for _, block in residual_blocks(model)]
    whole = sum(p.numel() for p in model.parameters())
    return min(whole, max(sizes, default=whole), BUCKET)


def _held(model: nn.Module, layout: Layout, rank: int) -> dict[str, tuple[int, int]]:
    """Elements of each parameter that a rank computes with, and that it holds of them."""
    if layout.is_sharded:
        part = partition_of(model, layout, rank)
        return {
            name: (math.prod(part.local[name]), part.held(name, parameter.ndim, rank).elements)
            for name, parameter in model.named_parameters()
        }
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if layout.strategy in ZERO:
        return {name: (size, _part(size, layout.world)) for name, size in sizes.items()}
    return {name: (size, size) for name, size in sizes.items()}


def _part(size: int, world: int) -> int:
    """Stage 3 gives each rank as much, padded; stages 1 and 2 cut the vector of all, so this is theirs on average."""
    start, stop = share(size, 0, world)
    return stop - start


def _gathered(model: nn.Module, layout: Layout, held: Mapping[str, tuple[int, int]]) -> int:
    """FSDP gathers a block, or all that is outside of them; stage 3 a block, or one other module."""
    if layout.strategy != "zero3" and (layout.strategy not in SHARDED or layout.shard == 1):
        return 0
    sizes = {id(p): held[name][0] * p.element_size() for name, p in model.named_parameters()}
    units = [{id(p) for p in block.parameters()} for _, block in residual_blocks(model)]
    inside = set().union(*units)
    if layout.strategy == "zero3":
        units += [{id(p) for p in module.parameters(recurse=False)} - inside for module in model.modules()]
    else:
        units.append(sizes.keys() - inside)
    return max(sum(sizes[one] for one in unit) for unit in units)
