"""Lesions: a network with some of its blocks removed or swapped, without touching its weights.

Veit et al. 2016 (arXiv:1605.06431), sections 4.1 and 4.3: a residual network hardly notices, since most of its paths
stay; a plain one falls to chance, since it has but one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from restrain.models import Join, ResidualBlock, joins, residual_blocks

KINDS = ("removed", "swapped", "prefix", "suffix")
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Lesion:
    """``blocks``: of ``removed``, ``prefix`` (the first ones) and ``suffix`` (the last ones) those without their
    branches; of ``swapped`` the two that change places."""

    kind: str
    blocks: tuple[str, ...]

    @property
    def label(self) -> str:
        """For a row of a table: ``layer1.2``, ``layer1.1 <-> layer1.2``, ``first 3``, ``last 3``."""
        if self.kind == "swapped":
            return " <-> ".join(self.blocks)
        if self.kind == "removed":
            return self.blocks[0]
        return f"{'first' if self.kind == 'prefix' else 'last'} {len(self.blocks)}"


@dataclass(frozen=True)
class Seen:
    """Shapes of what goes into a block and of what comes out, [B, ...]; None where that is no tensor."""

    before: torch.Size | None
    after: torch.Size | None

    @property
    def keeps(self) -> bool:
        return self.before is not None and self.before == self.after


@torch.no_grad()
def lesions(model: nn.Module, inputs: Tensor, kinds: Sequence[str] = KINDS) -> list[Lesion]:
    """All lesions of these kinds that the shapes allow, in depth order; ``inputs``: any rows of the model's."""
    seen = _shapes(model, inputs)
    removable = [name for name, block in residual_blocks(model) if _without(block, seen[name].keeps) is not None]
    found: list[Lesion] = []
    for kind in kinds:
        if kind == "removed":
            found += [Lesion(kind, (name,)) for name in removable]
        elif kind == "swapped":
            names = list(seen)
            found += [
                Lesion(kind, (one, other))
                for one, other in pairwise(names)
                if seen[one].keeps and seen[other].keeps and seen[one].after == seen[other].before
            ]
        else:
            cut = range(1, len(removable) + 1)
            found += [Lesion(kind, tuple(removable[:n] if kind == "prefix" else removable[-n:])) for n in cut]
    return found


@contextmanager
def applied(model: nn.Module, lesion: Lesion) -> Iterator[None]:
    """Inside, the model computes with the lesion; for evaluation."""
    blocks = dict(residual_blocks(model))
    if lesion.kind == "swapped":
        one, other = (blocks[name] for name in lesion.blocks)
        forwards: list[tuple[ResidualBlock, Forward]] = [(one, other.block_forward), (other, one.block_forward)]
    else:
        found = ((blocks[name], _without(blocks[name], keeps=True)) for name in lesion.blocks)
        forwards = [(block, forward) for block, forward in found if forward is not None]
    # An attribute of the instance hides the method of its class.
    for block, forward in forwards:
        block.block_forward = forward
    try:
        yield
    finally:
        for block, _ in forwards:
            del block.block_forward


def _without(block: ResidualBlock, keeps: bool) -> Forward | None:
    """The block without its branches: what its shortcuts give; of a block without shortcuts what goes in, where it
    ``keeps`` its shape. None where nothing can take the block's place."""
    found = [join for _, join in joins(block) if isinstance(join, Join)]
    says_how = type(block).skip_forward is not ResidualBlock.skip_forward
    if found and all(join.keeps_shortcut for join in found) and (says_how or keeps):
        return block.skip_forward
    return (lambda x, *rest, **options: x) if keeps else None


def _shapes(model: nn.Module, inputs: Tensor) -> dict[str, Seen]:
    seen: dict[str, Seen] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def look(block: nn.Module, given: tuple[Any, ...], y: Any) -> None:
            x = given[0] if given else None
            seen[name] = Seen(*(one.shape if isinstance(one, Tensor) else None for one in (x, y)))

        return look

    handles = [block.register_forward_hook(hook(name)) for name, block in residual_blocks(model)]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen
