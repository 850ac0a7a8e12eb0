"""``parallel.remat`` of a recipe, resolved for a model: which blocks are computed again, alone or in segments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from restrain.errors import UserError
from restrain.insight.cost import BlockBytes, block_bytes, weightless
from restrain.insight.units import size
from restrain.models import residual_blocks, set_group
from restrain.models.chains import chains
from restrain.parallel import blocks
from restrain.recipe import Recipe
from restrain.recipe.rematerialise import Remat
from restrain.training.dropping import Dropping
from restrain.training.inputs import like_inputs

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES["fp8"] = torch.bfloat16  # what is kept for the backward pass
NOTHING = "nothing is recomputed"


def twin_of(
    recipe: Recipe, model: nn.Module, micro: int, number_format: str, side: int | None = None
) -> tuple[nn.Module, torch.Tensor]:
    """A copy of ``model`` on the meta device, ready to train with nothing recomputed, and inputs of ``micro`` rows."""
    dtype = DTYPES[number_format]
    twin = weightless(model).to(dtype).train()
    for _, block in residual_blocks(twin):
        block.remat, block.segment = False, None
    set_group(twin, min(recipe.batch.group, micro))  # of a group that spans processes a pass has a part
    Dropping(twin, "sample", recipe.seed).rest(micro)
    return twin, like_inputs(recipe, micro, dtype, side)


def beside_blocks(model: nn.Module, inputs: torch.Tensor, number_format: str) -> int:
    """Bytes that activations take beside those that autograd saves.

    Images arrive as bytes and are normalised into floats, which the first convolution keeps; autocast casts matrices
    and kernels once a micro-batch, and keeps the casts.
    """
    casts = 0 if number_format in ("fp32", "fp64") else sum(2 * p.numel() for p in model.parameters() if p.ndim > 1)
    stored = 1 if inputs.is_floating_point() else 0  # bytes an element beside the inputs themselves
    return inputs.numel() * (stored + inputs.element_size()) + casts


def lay(
    recipe: Recipe, models: Sequence[nn.Module], twin: nn.Module, inputs: torch.Tensor, held: int, number_format: str
) -> str:
    """Let the blocks of all ``models``, which are one network, be recomputed as the recipe says; in words, which.

    ``twin``: the network on the meta device with nothing recomputed, which may be one of them. ``held``: bytes of a
    process that are no activations.

    Raises:
        UserError: the model has no such blocks, or does not fit the budget even with every block recomputed.
    """
    wanted = Remat.parse(recipe.parallel.remat)
    total = len(residual_blocks(twin))
    if wanted.mode == "none":
        return NOTHING
    if wanted.mode == "block":
        for model in models:
            blocks.apply_remat(model)
        return f"each of {total} blocks is recomputed"
    if wanted.mode == "budget":
        budget = wanted.budget - held - beside_blocks(twin, inputs, number_format)
        found, between = block_bytes(twin, inputs)
        chosen = fewest(found, between, budget)
        if chosen is None:
            least = wanted.budget - budget + needed(found, between, found)
            raise UserError(
                f"parallel.remat = {recipe.parallel.remat} is too small: with every block recomputed a process needs "
                f"{size(least)} for {len(inputs)} rows, of which {size(held)} are weights, gradients and what the "
                f"optimizer keeps. Lower batch.micro, or give more memory."
            )
        for model in models:
            if chosen:
                blocks.apply_remat(model, chosen)
        return f"{len(chosen)} of {total} blocks are recomputed, the fewest that keep within the budget"
    every = wanted.every if wanted.mode == "every" else max(1, round(math.sqrt(total)))
    found_chains = chains(twin, inputs)
    cut: list[list[str]] = []
    for model in models:
        cut = blocks.apply_segments(model, found_chains, every)
    return f"{total} blocks are recomputed in {len(cut)} segments of at most {every}"


def needed(found: Sequence[BlockBytes], between: int, chosen: Sequence[BlockBytes]) -> int:
    """Bytes of activations where the blocks ``chosen`` are recomputed, one at a time; ``between`` with all of them."""
    kept = sum(block.saves for block in found) - sum(block.saves for block in chosen)
    return between + kept + max((block.inside for block in chosen), default=0)


def fewest(found: Sequence[BlockBytes], between: int, budget: int) -> list[str] | None:
    """The fewest blocks whose recomputation lets the activations fit ``budget`` bytes; None: not even all.

    With the largest block that is recomputed given, the best of each number are those that save most: so all sizes of
    that block are tried.
    """
    everything = needed(found, between, [])
    if everything <= budget:
        return []
    best: list[str] | None = None
    for cap in sorted({block.inside for block in found}):
        order = sorted((block for block in found if block.inside <= cap), key=lambda block: -block.saves)
        kept = itertools.accumulate(
            (block.saves for block in order), lambda left, saved: left - saved, initial=everything
        )
        number = next((n for n, left in enumerate(kept) if left + cap <= budget), None)
        if number is not None and (best is None or number < len(best)):
            best = [block.name for block in order[:number]]
    return best
