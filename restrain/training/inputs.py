"""What a network is shown, for counting and trying: inputs of the right shape without samples."""

from __future__ import annotations

import torch
from torch import Tensor

from restrain.errors import UserError
from restrain.recipe import Recipe
from restrain.recipe.checks import DIGITS_SIDE

META = torch.device("meta")


def image_sides(recipe: Recipe) -> tuple[int, ...]:
    """Sides in pixels of the images that a run shows its network: that of training first, then what else there is.

    Of a task that has no images: none.
    """
    if recipe.data.kind != "images":
        return ()
    sizes = recipe.resolution
    train = sizes.train or DIGITS_SIDE  # the digits alone may leave it out
    found = [train, sizes.eval or train]
    if sizes.schedule is not None:
        found += range(sizes.schedule.first, train, sizes.schedule.multiple)
    return tuple(dict.fromkeys(found))


def like_inputs(recipe: Recipe, rows: int, dtype: torch.dtype, side: int | None = None) -> Tensor:
    """On the meta device: images [rows, C, side, side], by default of the size of training; tokens [rows, T]; numbers
    [rows, T, D]."""
    if recipe.data.kind == "tokens":
        return torch.empty(rows, recipe.data.context, dtype=torch.int64, device=META)
    if recipe.data.kind == "sequences":
        return torch.empty(rows, recipe.data.context, recipe.model.in_chans, dtype=dtype, device=META)
    side = side or image_sides(recipe)[0]
    return torch.empty(rows, recipe.model.in_chans, side, side, dtype=dtype, device=META)


def said(recipe: Recipe) -> str:
    """What one input is, in words: ``an image of 3 x 224 x 224``."""
    if recipe.data.kind == "tokens":
        return f"a window of {recipe.data.context} tokens"
    if recipe.data.kind == "sequences":
        return f"a sequence of {recipe.data.context} x {recipe.model.in_chans} numbers"
    side = image_sides(recipe)[0]
    return f"an image of {recipe.model.in_chans} x {side} x {side}"


def refuse_text(recipe: Recipe, command: str, instead: str) -> None:
    """Raises UserError where ``command``, which is for images, is given another model."""
    if recipe.data.kind == "sequences" or recipe.data.name == "sequences":
        raise UserError(f"restrain {command} is for images, and data.name=sequences makes its sequences itself.")
    if recipe.data.kind == "tokens":
        raise UserError(
            f"restrain {command} is for images, and this is a language model (task={recipe.task}). {instead}"
        )
