"""What a model costs, counted and not measured: on the meta device nothing is allocated and nothing is computed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock, residual_blocks
from restrain.models.residual import Join


def forward_macs(model: nn.Module, channels: int, height: int, width: int) -> int:
    """Multiply-adds of one image [1, ``channels``, ``height``, ``width``] through ``model``: :func:`input_macs`.

    Raises:
        UserError: the model does not take images of that size.
    """
    like = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        return input_macs(model, torch.empty(1, channels, height, width, dtype=like, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"The model does not take images of {channels} x {height} x {width} (channels, height, width): {said}. "
            "Look at resolution.train and model.in_chans."
        ) from None


def input_macs(model: nn.Module, inputs: torch.Tensor) -> int:
    """Multiply-adds of ``inputs``, on the meta device, through ``model`` in evaluation mode.

    Convolutions, matrix products and attention count, as in the tables of the literature (He et al. 2015, table 1:
    3.8 G for a ResNet-50, 4.09 G with torchvision's stride in the 3 x 3 convolution); norms, activations and biases do
    not. ``model`` may be on any device and in any mode: a copy without weights is what runs.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        weightless(model).eval()(inputs)
    return counter.get_total_flops() // 2  # torch counts a multiplication and an addition as two


def branch_macs(model: nn.Module, inputs: torch.Tensor) -> dict[str, int]:
    """Multiply-adds of the branches of each residual block for ``inputs``, by the block's name in depth order.

    What a block computes when it is skipped (a projection on its shortcut) is left out: the branches are what
    stochastic depth can save. ``inputs``: of one row, of which the shape and dtype are used.
    """
    twin = weightless(model).eval()
    blocks, given = residual_blocks(twin), {}

    def keep(name: str) -> Any:
        return lambda block, args, options: given.__setitem__(name, (args, options))

    for name, block in blocks:
        block.register_forward_pre_hook(keep(name), with_kwargs=True)
    whole = _macs_by_module(twin, inputs)
    found = {}
    for name, block in blocks:
        args, options = given.get(name, ((), {}))
        found[name] = whole.get(name, 0) - (_macs(block.skip_forward, args, options) if args else 0)
    return found


def _macs(f: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        f(*args, **options)
    return counter.get_total_flops() // 2


def _macs_by_module(model: nn.Module, inputs: torch.Tensor) -> dict[str, int]:
    """Multiply-adds of a forward pass inside each module that has any, by its dotted name."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(inputs.to("meta"))
    counts = counter.get_flop_counts()
    return {name.partition(".")[2]: sum(found.values()) // 2 for name, found in counts.items()}


def weightless(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the meta device, without hooks or observers; the weights are not copied on the way."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if isinstance(module, Join):
            module.observers.clear()
    return twin


def saved_bytes(model: nn.Module, images: torch.Tensor, *others: Any) -> int:
    """Bytes that a forward pass in training keeps for its backward pass, the weights and ``images`` apart.

    The estimate of a step's activations: what autograd saves, each storage once. It leaves out what lives only inside
    an operation, the gradients of activations, and what the allocator loses. Of a block with ``remat``, and of a
    segment, it is the input, and everything once more while it is recomputed, when what was kept of later ones is gone
    already. On the meta device nothing is allocated: there ``images`` [B, C, H, W] has only a size. ``others``: further
    inputs, such as a block may take.
    """
    kept = _kept(model, images, *others)
    again = (before + _recomputed(*call).total for before, call in zip(kept.before, kept.again, strict=True))
    return max(kept.total, max(again, default=0))


@dataclass(frozen=True)
class BlockBytes:
    """Of one block: ``inside``, what it holds while it is recomputed; ``saves``, what it then no longer holds between
    forward and backward."""

    name: str
    inside: int
    saves: int


def block_bytes(model: nn.Module, images: torch.Tensor) -> tuple[list[BlockBytes], int]:
    """Of each block, in the order of the forward pass; and the bytes between forward and backward where all blocks are
    recomputed, to which the ``saves`` of those that are not are added.

    ``model``: in training mode, with nothing recomputed; it is left so.
    """
    names = {block: name for name, block in residual_blocks(model)}
    for block in names:
        block.remat = True
    try:
        kept = _kept(model, images)
        inside = [_recomputed(*call) for call in kept.again]
    finally:
        for block in names:
            block.remat = False
    blocks = [
        BlockBytes(names[block], held.total, held.total - held.result)
        for (block, *_), held in zip(kept.again, inside, strict=True)
    ]
    return blocks, kept.total


@dataclass(frozen=True)
class _Kept:
    """Bytes between forward and backward, and those of them that are the result's, which whoever takes it may keep too;
    what is recomputed, with its arguments, in the order of the forward pass; and of each, the bytes that were kept when
    it was entered, its inputs included."""

    total: int
    result: int
    again: list[tuple[ResidualBlock, tuple[Any, ...], dict[str, Any]]]
    before: list[int]


def _kept(model: nn.Module, *inputs: Any, whole: Callable[..., Any] | None = None) -> _Kept:
    """``whole``: what computes, where it is not the call of ``model``."""
    own = (*model.parameters(), *model.buffers(), *(x for x in inputs[:1] if isinstance(x, torch.Tensor)))
    known = {_storage(tensor) for tensor in own}
    held: dict[int, torch.Tensor] = {}
    again: list[tuple[ResidualBlock, tuple[Any, ...], dict[str, Any]]] = []
    entered: list[int] = []  # storages in held by then

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in known:
            held[_storage(tensor)] = tensor
        return tensor

    def entering(block: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        for argument in (*arguments, *options.values()):
            if isinstance(argument, torch.Tensor):
                pack(argument)
        again.append((block, arguments, options))
        entered.append(len(held))

    hooks = [
        block.register_forward_pre_hook(entering, with_kwargs=True)
        for _, block in residual_blocks(model)
        if whole is None and (block.remat or block.segment)
    ]
    try:
        hooked = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with torch.enable_grad(), _FusedAttention(), hooked:
            out = (whole or model)(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    sizes = {at: tensor.untyped_storage().nbytes() for at, tensor in held.items()}
    results = {_storage(tensor) for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)}
    so_far = [0, *itertools.accumulate(sizes.values())]
    return _Kept(so_far[-1], sum(sizes.get(at, 0) for at in results), again, [so_far[number] for number in entered])


class _FusedAttention(TorchFunctionMode):
    """On the meta device attention would be taken apart, and its matrix kept, which no fused kernel does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and args[0].is_meta and args[0].dim() == 4:
            asked = {
                name for name, value in kwargs.items() if value is not None and value is not False and value != 0.0
            }
            if asked <= {"scale", "is_causal"}:
                fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
                return fused(*args, 0.0, kwargs.get("is_causal", False), scale=kwargs.get("scale"))[0]
        return func(*args, **kwargs)


def _recomputed(block: ResidualBlock, arguments: tuple[Any, ...], options: dict[str, Any]) -> _Kept:
    """What a block, or the segment that it begins, holds while it is computed again."""
    if not block.segment:
        return _kept(block, *arguments, whole=partial(block.block_forward, **options))
    return _kept(nn.ModuleList(block.segment), *arguments, whole=partial(block.together, **options))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
