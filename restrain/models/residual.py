"""The join: the one place where a branch meets the residual stream.

Shapes: B rows, C channels, H and W pixels, R rows of a micro-batch, J joins of a model.

Every block of a model is a :class:`ResidualBlock`; every ``x + f(x)`` of our own models is a :class:`Join` (a timm
model's are its own, with a keyed :class:`BranchDrop` on the branch). The join owns drop path and observation, and a
plain network is the same model with another join. Passes over a model (activation checkpointing, compile, probes) are
loops over :func:`residual_blocks` and know nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from restrain.errors import UserError, nearest

Observer = Callable[["Join", Tensor, Tensor, Tensor], None]


class DropPath(nn.Module):
    """Where the branch of a row may be dropped (Huang et al. 2016, arXiv:1603.09382).

    ``rate`` is the drop probability; ``factor`` [R] holds what each row's branch is multiplied with, 0 or
    1 / (1 - rate), written by :func:`set_factors` before a micro-step's forward and only read here, so recomputation
    and compilation see the same draws. ``spread``: consecutive rows of the branch that belong to one row of the batch
    (more than one where a model folds patches into the batch).
    """

    spread: int = 1

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise UserError(f"model.drop_path.rate is {rate}: a drop probability lies in [0, 1).")
        self.rate = rate
        # Blocks differ in `rate`, and torch.compile guards on each float that it reads: forward reads this bool alone.
        self.drops = rate > 0.0
        self.factor: Tensor
        self.register_buffer("factor", torch.empty(0, dtype=torch.float32), persistent=False)

    def dropped(self, branch: Tensor) -> Tensor:
        """The branch with each row multiplied by its factor."""
        if self.factor.shape[0] * self.spread != branch.shape[0]:
            raise RuntimeError(
                f"The join drops paths with rate {self.rate}, but holds {self.factor.shape[0]} keep factors for "
                f"{branch.shape[0]} rows: call restrain.models.set_factors before each forward in training mode."
            )
        factor = self.factor if self.spread == 1 else self.factor.repeat_interleave(self.spread)
        return branch * factor.to(branch.dtype).view(-1, *[1] * (branch.dim() - 1))


class BranchDrop(DropPath):
    """Drop path on a branch that joins elsewhere: what a timm model's own ``DropPath`` modules become."""

    def forward(self, branch: Tensor) -> Tensor:
        return self.dropped(branch) if self.drops and self.training else branch

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Join(DropPath):
    """``y = join(x, branch)``: x is the residual stream (after any shortcut projection), branch is f(x).

    ``observers`` are called as ``observer(join, x, branch, y)``; under activation checkpointing they are called in the
    recomputation as well.
    """

    name: str
    keeps_shortcut: bool  # whether y depends on x: without it a block needs no projection, and dropping means nothing

    def __init__(self, rate: float = 0.0):
        super().__init__(rate)
        self.observers: list[Observer] = []

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        if self.drops and self.training:
            branch = self.dropped(branch)
        y = self.joined(x, branch)
        if self.observers:
            for observer in self.observers:
                observer(self, x, branch, y)
        return y

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        """What distinguishes one join from another."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.name}, rate={self.rate:g}" if self.drops else self.name


class NoJoin(Join):
    """y = f(x): a plain network, in which depth degrades training (He et al. 2015, arXiv:1512.03385, figure 1)."""

    name = "none"
    keeps_shortcut = False

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return branch


class AddJoin(Join):
    """y = x + f(x) (He et al. 2015, equation 1); with a drop rate, stochastic depth (Huang et al. 2016, 1603.09382)."""

    name = "add"
    keeps_shortcut = True

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch


# Another join is a class above and a line here.
JOINS: dict[str, type[Join]] = {join.name: join for join in (NoJoin, AddJoin)}


def join_class(name: str) -> type[Join]:
    """The class of a join's name; UserError when there is none."""
    if name not in JOINS:
        raise UserError(f"model.join.name is {name!r}; the joins are {', '.join(JOINS)}.{nearest(name, JOINS)}")
    return JOINS[name]


class ResidualBlock(nn.Module):
    """A block of a residual model: define ``block_forward``. ``remat`` recomputes its activations in the backward.

    ``remat`` is set by ``restrain.parallel.blocks``. It is a switch and not a wrapper so that names in the state dict
    stay; random state is not kept, because no forward draws.
    """

    remat: bool = False

    # Any arguments and any result: the blocks of some timm models take more than the stream, or return several tensors.
    def forward(self, *inputs: Any, **options: Any) -> Any:
        if self.remat and torch.is_grad_enabled():
            return checkpoint(self.block_forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
        return self.block_forward(*inputs, **options)

    def block_forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError


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
            join.factor = torch.empty(factors.shape[1], dtype=torch.float32, device=join.factor.device)
    buffers = [join.factor for join in found]
    torch._foreach_copy_(buffers, list(factors.unbind()))  # pyright: ignore[reportPrivateImportUsage]
