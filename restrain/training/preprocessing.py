"""How a stored image becomes an input of a run's network, and what its outputs are called."""

from __future__ import annotations

from typing import Any

from restrain.data import augment, sets
from restrain.data.images import working_decoder
from restrain.errors import RestrainError
from restrain.recipe import Recipe


def preprocessing(recipe: Recipe, side: int) -> dict[str, Any]:
    """The evaluation's preprocessing as plain data, in the order in which it is done."""
    sizes = recipe.resolution
    return {
        "resize_shorter_side": sizes.eval_resize,
        "interpolation": sizes.interpolation if sizes.eval_resize else None,
        "centre_crop": side,
        "range": [0.0, 1.0],
        "mean": list(recipe.data.mean),
        "std": list(recipe.data.std),
        "channels": "RGB" if recipe.model.in_chans == 3 else "grey",
    }


def eval_pipeline(recipe: Recipe, side: int) -> augment.Pipeline:
    """Bytes of an image to uint8 [side, side, C], as the evaluation does it."""
    sizes = recipe.resolution
    decoder = working_decoder(getattr(recipe.data, "decode", "auto"))
    kernel, channels = sizes.interpolation, recipe.model.in_chans
    return augment.eval_pipeline(side, sizes.eval_resize, channels=channels, decoder=decoder, kernel=kernel)


def class_names(recipe: Recipe) -> list[str] | None:
    """Names of the classes where the set has some and can be reached; None elsewhere."""
    try:
        source = sets.open_source(recipe.data, "train", classes=recipe.model.classes)
    except RestrainError:
        return None
    names = getattr(source, "classes", None)
    return list(names) if names else None
