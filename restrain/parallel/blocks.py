"""Passes over the residual blocks of a model: recompute their activations, compile them.

Both work in place and change neither names in the state dict, nor draws, nor staged statistics. They are loops over
``residual_blocks`` and know nothing else of a model. The order is remat, then compile, then sharding.
"""

from __future__ import annotations

from torch import nn

from restrain.errors import UserError
from restrain.models import ResidualBlock, residual_blocks

# All blocks share one `forward`, and torch counts its compiled versions there: a ResNet-50 has 8 kinds of block, twice
# (training, evaluation). Past torch's default of 8, further kinds would run uncompiled with no more than a log line.
KINDS = 64


def apply_remat(model: nn.Module) -> None:
    """Keep only the input of each block for the backward, and compute the rest again (Chen et al. 2016, 1604.06174)."""
    for block in _blocks(model, "remat"):
        block.remat = True


def apply_compile(model: nn.Module, backend: str = "inductor") -> None:
    """Compile each block on its own, for fixed shapes: compile time grows with the kinds of block, not with depth."""
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
