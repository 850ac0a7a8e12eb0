"""Passes over the residual blocks of a model: recompute their activations, compile them.

Both work in place and change neither names in the state dict, nor draws, nor staged statistics. They are loops over
``residual_blocks`` and know nothing else of a model. The order is remat, then compile, then sharding.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import nn

from restrain.errors import UserError
from restrain.models import ResidualBlock, residual_blocks

# All blocks share one `forward`, and torch counts its compiled versions there: a ResNet-50 has 8 kinds of block, twice
# (training, evaluation). Past torch's default of 8, further kinds would run uncompiled with no more than a log line.
KINDS = 64


def apply_remat(model: nn.Module, mode: str = "block", chosen: Collection[str] = ()) -> None:
    """Keep less for the backward pass and compute it again (Chen et al. 2016, arXiv:1604.06174).

    ``none``: keep all. ``block``: of each block only its input. ``every=K``: of each K blocks only the input of the
    first. ``sqrt``: as ``every`` with the square root of the number of blocks, which keeps least. ``budget=...``: of
    the ``chosen`` blocks, by name, only the input. Raises UserError where the network does not run its blocks in a row.
    """
    if mode == "none":
        return
    named = [(name, block) for name, block in residual_blocks(model)]
    blocks = _blocks(model, "remat")
    if mode == "block" or mode.startswith("budget"):
        for name, block in named:
            block.remat = mode == "block" or name in chosen
        return
    if not getattr(model, "runs_in_a_row", False):
        raise UserError(
            f"parallel.remat={mode} recomputes stretches of blocks, and {type(model).__name__} does not run its blocks "
            f"in a row, with nothing between them. Use parallel.remat=block."
        )
    size = segment_size(mode, len(blocks))
    for number, block in enumerate(blocks):
        block.segment = number // size


def segment_size(mode: str, blocks: int) -> int:
    """Blocks of a stretch under ``every=K`` and ``sqrt``."""
    return max(1, round(math.sqrt(blocks))) if mode == "sqrt" else int(mode.partition("=")[2])


def apply_compile(model: nn.Module, backend: str = "inductor", mode: str = "block") -> None:
    """Compile for fixed shapes. ``block``: each block on its own: the time grows with the kinds of block, not with
    depth. ``step``: the network as one, with more to fuse and a time that does grow."""
    if mode == "none":
        return
    if mode == "step":
        model.compile(backend=backend, dynamic=False)
        return
    blocks = _blocks(model, "compile")
    for block in blocks:
        # In a DenseNet each block is of a kind of its own.
        block.compile(backend=backend, dynamic=False, recompile_limit=max(KINDS, 2 * len(blocks)))


def _blocks(model: nn.Module, key: str) -> list[ResidualBlock]:
    """The model's residual blocks; some of timm's models, such as VGG, have none."""
    found = [block for _, block in residual_blocks(model)]
    if not found:
        raise UserError(f"parallel.{key} = block does nothing: {type(model).__name__} has no residual blocks.")
    return found
