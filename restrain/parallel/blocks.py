"""Passes over the residual blocks of a model: recompute their activations, compile them.

Both work in place and change neither names in the state dict, nor draws, nor staged statistics. They are loops over
``residual_blocks`` and know nothing else of a model. The order is remat, then compile, then sharding.
"""

from __future__ import annotations

from torch import nn

from restrain.models import residual_blocks


def apply_remat(model: nn.Module) -> None:
    """Keep only the input of each block for the backward, and compute the rest again (Chen et al. 2016, 1604.06174)."""
    for _, block in residual_blocks(model):
        block.remat = True


def apply_compile(model: nn.Module) -> None:
    """Compile each block on its own, for fixed shapes: compile time grows with the kinds of block, not with depth."""
    for _, block in residual_blocks(model):
        block.compile(dynamic=False)
