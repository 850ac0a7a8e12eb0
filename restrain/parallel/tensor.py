"""Tensor parallelism of transformer blocks: each rank of a group has some of the heads and some of the MLP's units.

Shoeybi et al. 2019 (Megatron-LM, arXiv:1909.08053), section 3: the first matrix of a branch is cut by its outputs, the
last one by its inputs, so that a branch needs one reduction forward and one backward. The stream, norms, joins and
embeddings are whole on each rank and computed alike. The matrices stay plain tensors, smaller ones; what part of the
whole they are is known by name (:class:`Cut`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models import residual_blocks
from restrain.models.norm import grouped_norms
from restrain.models.transformers.attention import Attention
from restrain.models.transformers.block import Mlp


@dataclass(frozen=True)
class Cut:
    """``shape``: of the whole tensor; the local one holds its ``segments`` along ``dim``, one after the other."""

    shape: tuple[int, ...]
    dim: int
    segments: tuple[tuple[int, int], ...]


class _Into(torch.autograd.Function):
    """x as it is; its gradient is the sum over the group, whose ranks each compute a part of what follows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous()
        if whole is gradients[0]:
            whole = whole.clone()
        dist.all_reduce(whole, group=ctx.group)
        return whole, None


class _OutOf(torch.autograd.Function):
    """The sum of x over the group; every rank has its gradient already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        y = x.contiguous().clone()
        dist.all_reduce(y, group=group)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def check(model: nn.Module, size: int) -> None:
    """Raises UserError where a model cannot be shared by so many ranks, naming the sizes that work."""
    if grouped_norms(model):
        raise UserError(
            f"parallel.tensor={size}: the ranks of a tensor group see the same rows, and BatchNorm is not cut over "
            f"them. Tensor parallelism is for transformers; set parallel.tensor=1."
        )
    attentions = [m for _, block in residual_blocks(model) for m in block.modules() if isinstance(m, Attention)]
    if not attentions:
        raise UserError(
            f"parallel.tensor={size}: {type(model).__name__} has no attention of ours to cut by its heads. Set "
            f"parallel.tensor=1, and let parallel.strategy=fsdp shard it."
        )
    heads = attentions[0].heads
    hidden = [m.fc2.in_features for _, block in residual_blocks(model) for m in block.modules() if isinstance(m, Mlp)]
    fits = [n for n in range(1, heads + 1) if heads % n == 0 and all(h % n == 0 for h in hidden)]
    if size not in fits:
        listed = ", ".join(map(str, fits))
        raise UserError(
            f"parallel.tensor={size} does not divide the {heads} attention heads and the MLP's {hidden[0]} units; "
            f"{listed} do."
        )


def apply(model: nn.Module, rank: int, size: int, group: Any) -> dict[str, Cut]:
    """Cut the branches of a model on the meta device, in place; which tensors are cut, by name.

    ``rank``: within the group. Names in the state dict stay. What of a rank's own heads or units has a whole parameter
    (the norms of QK-norm) has a gradient that is a part of the sum: :func:`partial` names these.
    """
    cuts: dict[str, Cut] = {}
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            width, head = module.proj.in_features, module.proj.in_features // size
            mine = (rank * head, (rank + 1) * head)
            thirds = {"qkv": 3, "qk": 2, "v": 1}
            for part, count in thirds.items():
                layer = getattr(module, part)
                if layer is not None:
                    segments = [(k * width + mine[0], k * width + mine[1]) for k in range(count)]
                    _by_outputs(layer, segments, f"{name}.{part}", cuts)
            _by_inputs(module.proj, mine, f"{name}.proj", cuts, group)
            module.heads //= size
            module.register_forward_pre_hook(_entering(group))
        elif isinstance(module, Mlp):
            hidden = module.fc2.in_features
            mine = (rank * hidden // size, (rank + 1) * hidden // size)
            halves = module.fc1.out_features // hidden  # SwiGLU's fc1 gives gates, then values
            segments = [(k * hidden + mine[0], k * hidden + mine[1]) for k in range(halves)]
            _by_outputs(module.fc1, segments, f"{name}.fc1", cuts)
            _by_inputs(module.fc2, mine, f"{name}.fc2", cuts, group)
            module.register_forward_pre_hook(_entering(group))
    return cuts


def partial(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Whole parameters inside of what is cut: the norms of queries and keys, which see a rank's own heads alone."""
    return [
        (f"{name}.{inner}", parameter)
        for name, module in model.named_modules()
        if isinstance(module, Attention)
        for norm in ("q_norm", "k_norm")
        for inner, parameter in getattr(module, norm).named_parameters(prefix=norm)
    ]


def _entering(group: Any) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_Into.apply(inputs[0], group), *inputs[1:])

    return hook


def _by_outputs(layer: Any, segments: Sequence[tuple[int, int]], name: str, cuts: dict[str, Cut]) -> None:
    rows = sum(stop - start for start, stop in segments)
    for key in ("weight", "bias"):
        tensor = getattr(layer, key)
        if tensor is not None:
            cuts[f"{name}.{key}"] = Cut(tuple(tensor.shape), 0, tuple(segments))
            setattr(layer, key, nn.Parameter(tensor.new_empty(rows, *tensor.shape[1:]), tensor.requires_grad))
    layer.out_features = rows


def _by_inputs(layer: Any, mine: tuple[int, int], name: str, cuts: dict[str, Cut], group: Any) -> None:
    weight = layer.weight
    cuts[f"{name}.weight"] = Cut(tuple(weight.shape), 1, (mine,))
    layer.weight = nn.Parameter(weight.new_empty(weight.shape[0], mine[1] - mine[0]), weight.requires_grad)
    layer.in_features = mine[1] - mine[0]

    def product(x: Tensor) -> Tensor:
        y = _OutOf.apply(nn.functional.linear(x, layer.weight), group)
        return y if layer.bias is None else y + layer.bias.to(y.dtype)

    layer.forward = product
