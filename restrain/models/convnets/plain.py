"""What nets without residual blocks have in common: they refuse what acts on blocks."""

from __future__ import annotations

from restrain.errors import UserError
from restrain.models.convnets.resnet import VARIANTS
from restrain.models.wish import Wish


def refuse_residual(wish: Wish) -> None:
    """Raises UserError where a recipe asks a net without residual blocks for what only blocks and ResNets have."""
    if wish.join.name != "none":
        raise UserError(
            f"model.join.name is {wish.join.name!r}, but {wish.name} is a plain net without residual blocks, so "
            f"nothing joins: set model.join.name=none, or leave model.join out. With shortcuts there is resnet18."
        )
    if wish.options.get("zero_init", "auto") is True:
        raise UserError(f"model.zero_init is true, but {wish.name} has no branches that could start at zero.")
    for key, plain in VARIANTS.items():
        if wish.options.get(key, plain) != plain:
            raise UserError(f"model.{key} is an option of ResNets, and {wish.name} is none.")
