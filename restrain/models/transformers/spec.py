"""The numbers that make a transformer, and what a recipe may change of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from restrain.errors import UserError, nearest
from restrain.models.fill import ZERO, Fill
from restrain.models.transformers.initial import RULES, Part
from restrain.models.wish import Wish

CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("layernorm", "rmsnorm"),
    "order": ("pre", "post", "deepnorm"),
    "activation": ("gelu", "gelu_tanh", "relu", "relu2", "swiglu"),
}


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """What all blocks of a transformer share. The recipe's names: model.shape and model.transformer.

    ``depth`` blocks of ``width`` channels and ``heads``; ``mlp``: channels inside the MLP in multiples of the width. 0
    stands for what follows from the others or has to be said (:meth:`asked`). ``order``: the norm before each branch
    (pre), after each join (post, Vaswani et al. 2017), or after joins with a larger shortcut (deepnorm, Wang et al.
    2022). ``init``: the rule of :data:`.initial.RULES` for the projections. ``zero``: branches end in zeros instead, so
    that a block starts as its shortcut.
    """

    SHAPE: ClassVar[tuple[str, ...]] = ("depth", "width", "heads", "mlp")
    OPTIONS: ClassVar[tuple[str, ...]] = ("norm", "order", "position", "activation", "qk_norm", "bias", "dropout")
    POSITIONS: ClassVar[tuple[str, ...]] = ("learned", "sincos", "none")

    depth: int = 0
    width: int = 0
    heads: int = 0
    mlp: float = 0.0
    norm: str = "layernorm"
    order: str = "pre"
    position: str = "learned"
    activation: str = "gelu"
    qk_norm: bool = False
    bias: bool = True
    dropout: float = 0.0
    eps: float = 1e-5
    causal: bool = False
    init: str = "normal"
    zero: bool = False

    @property
    def hidden(self) -> int:
        """Channels inside the MLP: 4 times the width; of SwiGLU, which has a third matrix, 2/3 of that, in 64s.

        Shazeer 2020 (arXiv:2002.05202), section 3.
        """
        if not self.mlp and self.activation == "swiglu":
            return -(-8 * self.width // (3 * 64)) * 64
        return int(self.width * (self.mlp or 4))

    def fill(self, part: Part, fan_in: int, fan_out: int) -> Fill:
        """How the weight of a projection is filled."""
        if self.zero and part == "out":
            return ZERO
        return RULES["deepnorm" if self.order == "deepnorm" else self.init](part, fan_in, fan_out, self.depth)

    def asked(self, wish: Wish) -> Self:
        """This spec with what the recipe changes of it, complete.

        Raises:
            UserError: a key that the family does not have, a number that is missing or does not fit the others.
        """
        changes = _known(wish, "shape", wish.shape, self.SHAPE) | _known(
            wish, "transformer", wish.transformer, self.OPTIONS
        )
        # zero_init auto is for branches that end in a norm; a transformer's start small and not at zero.
        changes["zero"] = wish.options.get("zero_init") is True
        return dataclasses.replace(self, **changes)._complete(wish.name)

    def _complete(self, name: str) -> Self:
        for key in ("depth", "width"):
            if getattr(self, key) < 1:
                raise UserError(f"model.shape.{key} is missing: {name} has no size of its own.")
        heads = self.heads or max(1, self.width // 64)
        if self.width % heads:
            fits = [n for n in range(1, self.width + 1) if self.width % n == 0 and self.width // n >= 8]
            close = sorted(sorted(fits, key=lambda n: abs(n - heads))[:4])
            raise UserError(
                f"model.shape.heads is {heads}, which does not divide the width {self.width}; "
                f"{', '.join(map(str, close))} do."
            )
        for key, choices in (CHOICES | {"position": self.POSITIONS}).items():
            value = getattr(self, key)
            if value not in choices:
                raise UserError(
                    f"model.transformer.{key} is {value!r}; of {name} it is {', '.join(choices)}."
                    f"{nearest(str(value), choices)}"
                )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.transformer.dropout is {self.dropout}: a rate lies in [0, 1).")
        _check_position(self.position, self.width, heads)
        return dataclasses.replace(self, heads=heads)


@dataclass(frozen=True, kw_only=True)
class LanguageSpec(TransformerSpec):
    """``context``: the longest sequence. ``tied``: the matrix of the head is that of the embedding."""

    SHAPE: ClassVar[tuple[str, ...]] = (*TransformerSpec.SHAPE, "context")
    OPTIONS: ClassVar[tuple[str, ...]] = (*TransformerSpec.OPTIONS, "tied")
    POSITIONS: ClassVar[tuple[str, ...]] = ("learned", "rotary", "sincos", "none")

    context: int = 0
    tied: bool = True


def _known(wish: Wish, section: str, given: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    for key in given:
        if key not in keys:
            raise UserError(
                f"model.{section}.{key} does nothing for {wish.name}, whose keys there are {', '.join(keys)}."
                f"{nearest(key, keys)}"
            )
    return dict(given)


def _check_position(position: str, width: int, heads: int) -> None:
    if position == "rotary" and (width // heads) % 2:
        raise UserError(
            f"model.transformer.position is rotary, which turns pairs of channels, and {width} channels in {heads} "
            f"heads are {width // heads} a head: choose heads of an even number of channels."
        )
    if position == "sincos" and width % 4:
        raise UserError(f"model.transformer.position is sincos, which needs a width that 4 divides, not {width}.")
