"""What a recipe's ``model`` section asks of a network, read once for all families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from restrain.errors import UserError
from restrain.models.blocks import drop_rate
from restrain.models.residual import JoinSpec, join_spec

MODES = ("sample", "batch", "subset")


@dataclass(frozen=True)
class Wish:
    """``rate``, ``decay``, ``mode``: of drop path. ``zero_init``: branches start at zero. ``shape`` and
    ``transformer``: what the recipe says beside the name, null keys left out. ``options``: the whole section.
    ``sides``: of the images that the model will see in pixels, that of training first; empty: unknown."""

    name: str
    classes: int
    in_chans: int = 3
    join: JoinSpec = field(default_factory=JoinSpec)
    rate: float = 0.0
    decay: str = "linear"
    mode: str = "sample"
    zero_init: bool = True
    shape: Mapping[str, Any] = field(default_factory=dict)
    transformer: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    sides: tuple[int, ...] = ()

    @classmethod
    def of(cls, section: Mapping[str, Any], sides: Sequence[int] = ()) -> Wish:
        """That of a recipe's ``model`` section; UserError for joins and modes that do not exist."""
        join = join_spec(section.get("join"))
        drop_path = section.get("drop_path") or {}
        rate, mode = drop_path.get("rate", 0.0), drop_path.get("mode", "sample")
        if rate and not join.keeps_shortcut:
            raise UserError(
                f"model.drop_path.rate is {rate}, but with model.join.name={join.name} there is no path to drop."
            )
        if mode not in MODES:
            raise UserError(f"model.drop_path.mode is {mode!r}; the modes are {', '.join(MODES)}.")
        zero_init = section.get("zero_init", "auto")
        if zero_init == "auto":
            # A branch that starts at zero makes the block an identity (Goyal et al. 2017, section 5.1); without a
            # shortcut it would make the network a constant.
            zero_init = join.starts_at_zero
        if zero_init and not join.keeps_shortcut:
            raise UserError(
                f"model.zero_init is true, but with model.join.name={join.name} a branch of zeros makes the network's "
                f"output constant. Use auto or false."
            )
        return cls(
            section["name"],
            section["classes"],
            section.get("in_chans", 3),
            join,
            rate,
            drop_path.get("decay", "linear"),
            mode,
            bool(zero_init),
            _given(section.get("shape")),
            _given(section.get("transformer")),
            section,
            tuple(sides),
        )

    def rates(self, blocks: int) -> tuple[float, ...]:
        """The drop probability of each of so many blocks, in depth order."""
        return tuple(drop_rate(self.rate, self.decay, depth, blocks) for depth in range(blocks))

    def size(self, key: str, default: int | None = None) -> int:
        """``model.shape``'s key, or the family's own; UserError where neither says it."""
        found = self.shape.get(key, default)
        if found is None:
            raise UserError(f"model.shape.{key} is missing: model.name={self.name} is of any size.")
        return found

    def pixels(self) -> int:
        """Numbers of an image, C H W; UserError where its size is not known, or is not one."""
        if len(set(self.sides)) != 1:
            told = "images of several sizes" if self.sides else "images of unknown size"
            raise UserError(
                f"model.name={self.name} reads each pixel with a weight of its own, and is given {told}. Let "
                f"resolution.train and resolution.eval be one size, without a schedule."
            )
        return self.in_chans * self.sides[0] ** 2

    def refuse_join(self, family: str, *names: str) -> None:
        """Raises UserError where the recipe asks for one of these joins, which the family has no place for."""
        if self.join.name in names:
            raise UserError(f"model.join.name is {self.join.name!r}, which has no place in {family} ({self.name}).")

    def refuse_images_below(self, pixels: int) -> None:
        """Raises UserError for images of a side of which the network's poolings leave nothing."""
        for side in self.sides:
            if side < pixels:
                raise UserError(
                    f"resolution.train: {self.name} takes images of {pixels} pixels or more, as its poolings leave "
                    f"nothing of smaller ones; these have {side}. Take larger ones, or a network with fewer poolings."
                )

    def refuse_subset(self, because: str) -> None:
        """Raises UserError for the drop-path mode ``subset``."""
        if self.mode == "subset" and self.rate:
            raise UserError(f"model.drop_path.mode is 'subset', but {because}. Use mode sample or batch.")


def _given(section: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (section or {}).items() if value is not None}
