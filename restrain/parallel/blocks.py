"""Passes over the residual blocks of a model: recompute their activations, compile them.

They work in place and change neither names in the state dict, nor draws, nor staged statistics. They are loops over
``residual_blocks`` and know nothing else of a model. The order is remat, then compile, then sharding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from restrain.errors import UserError
from restrain.models import ResidualBlock, residual_blocks

# All blocks share one `forward`, and torch counts its compiled versions there: a ResNet-50 has 8 kinds of block, twice
# (training, evaluation). Past torch's default of 8, further kinds would run uncompiled with no more than a log line.
KINDS = 64


def apply_remat(model: nn.Module, chosen: Iterable[str] | None = None) -> None:
    """Keep only the input of each block for the backward, and compute the rest again (Chen et al. 2016, 1604.06174).

    ``chosen``: names of the blocks that are computed again; None: all.
    """
    wanted = None if chosen is None else set(chosen)
    for block in _blocks(model, "remat", wanted):
        block.remat = True


def apply_segments(model: nn.Module, chains: Sequence[Sequence[str]], every: int) -> list[list[str]]:
    """Keep only the input of every ``every`` consecutive blocks, and compute all that is between again.

    ``chains``: names of blocks that follow one another directly (:func:`restrain.models.chains.chains`). What is left
    of a chain is a shorter segment. Returns the segments.

    Raises:
        UserError: there are no two blocks that follow one another directly, or no more than ``every`` blocks.
    """
    blocks = dict(residual_blocks(model))
    longest = max(map(len, chains), default=0)
    if every > 1 and longest < 2:
        raise UserError(
            f"parallel.remat recomputes blocks {every} at a time, but in {type(model).__name__} no block follows "
            f"another directly with nothing between them. Use parallel.remat=block."
        )
    if every >= max(2, len(blocks)):
        raise UserError(
            f"parallel.remat = every={every} does nothing for memory: {type(model).__name__} has {len(blocks)} "
            f"residual blocks, and all of them in one segment are kept again while it is recomputed. Use sqrt, or a "
            f"smaller k."
        )
    cut = [list(chain[at : at + every]) for chain in chains for at in range(0, len(chain), every)]
    for names in cut:
        first, *others = (blocks[name] for name in names)
        first.segment = (first, *others)
        for block in others:
            block.segment = ()
    alone = blocks.keys() - {name for names in cut for name in names}
    if alone:
        apply_remat(model, alone)
    return cut


def apply_compile(model: nn.Module, backend: str = "inductor") -> None:
    """Compile each block on its own, for fixed shapes: compile time grows with the kinds of block, not with depth."""
    blocks = _blocks(model, "compile")
    for block in blocks:
        # In a DenseNet each block is of a kind of its own.
        block.compile(backend=backend, dynamic=False, recompile_limit=max(KINDS, 2 * len(blocks)))


def apply_compile_whole(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the network as one graph, for fixed shapes: compile time grows with depth."""
    model.compile(backend=backend, dynamic=False, recompile_limit=KINDS)


def _blocks(model: nn.Module, key: str, names: set[str] | None = None) -> list[ResidualBlock]:
    """The model's residual blocks, or those of ``names``; some of timm's models, such as VGG, have none."""
    found = residual_blocks(model)
    if not found:
        raise UserError(f"parallel.{key} = block does nothing: {type(model).__name__} has no residual blocks.")
    return [block for name, block in found if names is None or name in names]
