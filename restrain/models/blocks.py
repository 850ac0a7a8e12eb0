"""The residual block, and the passes over the blocks and joins of a model.

Shapes: R rows of a micro-batch, J joins of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from restrain.errors import UserError
from restrain.models.norm import GroupedBatchNorm
from restrain.models.residual import DropPath, ScaledAddJoin


class ResidualBlock(nn.Module):
    """A block of a residual model: define ``block_forward``. ``remat`` recomputes its activations in the backward.

    ``remat`` and ``segment`` are set by ``restrain.parallel.blocks``. They are switches and not wrappers so that names
    in the state dict stay; random state is not kept, because no forward draws. ``skipped``: in training the block is
    passed by, its branches neither computed nor differentiated (drop-path mode ``batch``); set by the host between two
    steps.

    Of consecutive blocks that are recomputed together, the first has them all as its ``segment`` and computes them all
    when it is called; to the others, which have an empty one, the stream comes finished. So a network calls its blocks
    as ever, and needs to know nothing of segments.
    """

    remat: bool = False
    segment: tuple[ResidualBlock, ...] | None = None
    skipped: bool = False
    gathered_to_skip: bool = False  # set where parameters are cut over ranks
    zeros: bool = True  # whether skipping makes gradients of zero; ZeRO-3 has them where it keeps its own
    idle_norms: list[GroupedBatchNorm] | None = None  # of its norms those that a skipped forward does not reach

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if self.segment is None or not torch.is_grad_enabled():
            return self._alone(*inputs, **options)
        if not self.segment:
            return inputs[0]
        return checkpoint(self.together, *inputs, use_reentrant=False, preserve_rng_state=False, **options)

    def together(self, x: Any, *inputs: Any, **options: Any) -> Any:
        """The result of the segment that this block begins."""
        assert self.segment is not None
        for block in self.segment:
            x = block._alone(x, *inputs, **options)
        return x

    # Decided before torch's own call, where per-block compilation and the hooks of sharding begin: a skipped block
    # costs neither a compiled variant nor a gather. Where its parameters are cut over ranks and its skip path computes
    # with some, it is gathered all the same.
    def _alone(self, *inputs: Any, **options: Any) -> Any:
        if self.skipped and self.training and not self.gathered_to_skip:
            return self._pass_by(*inputs, **options)
        return super().__call__(*inputs, **options)

    def _pass_by(self, *inputs: Any, **options: Any) -> Any:
        norms = [] if self.idle_norms is not None else [m for m in self.modules() if isinstance(m, GroupedBatchNorm)]
        reached: set[nn.Module] = set()
        watches = [norm.register_forward_pre_hook(lambda norm, _: reached.add(norm)) for norm in norms]
        try:
            y = self.skip_forward(*inputs, **options)
        finally:
            for watch in watches:
                watch.remove()
        if self.idle_norms is None:
            self.idle_norms = [norm for norm in norms if norm not in reached]
        if not self.zeros:
            return y
        return _WithZeroGradients.apply(y, *(p for p in self.parameters() if p.requires_grad))

    # Any arguments and any result: the blocks of some timm models take more than the stream, or return several tensors.
    def forward(self, *inputs: Any, **options: Any) -> Any:
        if self.skipped and self.training:
            return self._pass_by(*inputs, **options)
        if self.remat and torch.is_grad_enabled():
            return checkpoint(self.block_forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
        return self.block_forward(*inputs, **options)

    def block_forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError

    def skip_forward(self, *inputs: Any, **options: Any) -> Any:
        """What the block computes without its branches: the stream as it is, where it keeps its shape."""
        return inputs[0]

    def skip_has_parameters(self) -> bool:
        """Whether ``skip_forward`` computes with parameters: those of a projection, or of a join's shortcut."""
        shortcuts = [join for _, join in joins(self) if not isinstance(join, ScaledAddJoin)]
        if isinstance(projection := getattr(self, "downsample", None), nn.Module):
            shortcuts.append(projection)  # pyright: ignore[reportArgumentType]
        return any(True for module in shortcuts for _ in module.parameters())


class _WithZeroGradients(torch.autograd.Function):
    """y as it is; in the backward pass every parameter gets a gradient of zeros.

    An absent gradient would leave DDP waiting, and momentum, weight decay and Adam's counters standing still.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return y.detach()  # not a view of y, which the next block could not work on in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients[0], *(torch.zeros_like(parameter) for parameter in ctx.parameters)


def drop_rate(rate: float, decay: str, depth: int, blocks: int) -> float:
    """Drop probability of the block ``depth`` (from 0) of ``blocks``: l / L times ``rate``, or ``rate`` throughout.

    Linear decay is Huang et al. 2016 (arXiv:1603.09382), equation 4, with l = 1 for the first block.
    """
    if decay == "linear":
        return rate * (depth + 1) / blocks
    if decay == "constant":
        return rate
    raise UserError(f"model.drop_path.decay is {decay!r}; it is linear or constant.")


def residual_blocks(model: nn.Module) -> list[tuple[str, ResidualBlock]]:
    """The blocks in depth order with their dotted names, which are those of the state dict."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ResidualBlock)]


def joins(block: nn.Module) -> list[tuple[str, DropPath]]:
    """The joins of a block in depth order, with names relative to it (one in a ResNet block).

    Of a timm block, its keyed drop paths: the block adds them itself, so there is nothing else to see of a join.
    """
    return [(name, module) for name, module in block.named_modules() if isinstance(module, DropPath)]


def named_joins(model: nn.Module) -> list[tuple[str, DropPath]]:
    """All joins of a model in depth order with their full dotted names; the names key their drop-path draws."""
    return [(f"{block}.{name}", join) for block, module in residual_blocks(model) for name, join in joins(module)]


def set_factors(model: nn.Module | Sequence[DropPath], factors: Tensor) -> None:
    """Write the keep factors [J, R] into the joins' buffers, in place; ``model`` may be the list of its joins.

    The buffers are allocated anew only when R changes.
    """
    found = [join for _, join in named_joins(model)] if isinstance(model, nn.Module) else list(model)
    if factors.dim() != 2 or factors.shape[0] != len(found):
        raise ValueError(f"Factors of shape {list(factors.shape)} for {len(found)} joins: [joins, rows] is expected.")
    if not found:
        return
    if any(join.factor.shape[0] != factors.shape[1] for join in found):
        for join in found:
            join.factor = join.factor.new_empty(factors.shape[1])
    buffers = [join.factor for join in found]
    torch._foreach_copy_(buffers, list(factors.unbind()))  # pyright: ignore[reportPrivateImportUsage]
