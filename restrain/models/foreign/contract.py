"""Models whose code is not ours, timm's or a person's own, under the block contract.

Their constructors are taken as they are, with their own initialisation drawn from keys; what then differs is where
randomness comes from and how BatchNorm counts (:mod:`.adopt`), never what a layer computes. A trial on the meta device
(:mod:`.trial`) says before a run whether a step can rely on the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from restrain.errors import UserError
from restrain.models.blocks import named_joins
from restrain.models.foreign.keyed import KeyedDraws

SCRIPT = "script/"
Build = Callable[[Mapping[str, Any]], nn.Module]
# What constructors and forwards raise where they don't take what is asked of them.
MISFITS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, KeyError, ZeroDivisionError)


@dataclass(frozen=True)
class ForeignWish:
    """What is asked of a model. ``name``: as the recipe has it; ``rate``: of dropped paths; ``sides``: of the images
    that it will see in pixels, that of training first; without them it is not tried."""

    name: str
    classes: int
    in_chans: int
    rate: float
    sides: tuple[int, ...]

    @classmethod
    def of(cls, mapping: Mapping[str, Any], sides: Sequence[int]) -> ForeignWish:
        """That of a recipe's ``model`` section."""
        rate = (mapping.get("drop_path") or {}).get("rate", 0.0)
        return cls(mapping["name"], mapping["classes"], mapping.get("in_chans", 3), rate, tuple(sides))


def build_own(build: Build, mapping: Mapping[str, Any], seed: int, sides: Sequence[int] = ()) -> nn.Module:
    """The model that a person's ``build(section)`` makes of a recipe's ``model`` section, a plain mapping.

    Under ``torch.device("meta")`` nothing is allocated; otherwise it is built on the CPU, its initial weights its own,
    drawn from ``seed``. Raises UserError where it cannot keep the contract.
    """
    wish, section = ForeignWish.of(mapping, sides), Looked(mapping)

    def make() -> nn.Module:
        before = generators()
        try:
            model = build(section)
        except UserError:
            raise
        except Exception as error:  # anything may happen in code that is not ours
            said = " ".join(str(error).split())[:300].rstrip(".")
            raise UserError(
                f"model.name: {wish.name} cannot be built: {type(error).__name__}: {said}. "
                f"(It is built without memory first, on torch's meta device: its constructor can fill tensors with "
                f"torch.nn.init, but not look at their values.)"
            ) from error
        if not isinstance(model, nn.Module):
            raise UserError(f"model.name: {wish.name} made {type(model).__name__}, which is no torch.nn.Module.")
        if generators() != before:
            raise UserError(
                f"model.name: the constructor of {wish.name} draws from a generator of random or numpy, so its weights "
                f"would not be those of the recipe's seed. Draw with torch: its fills are drawn from the seed."
            )
        return model

    with torch.device("meta"):
        plan = make()
    asked = [key for key, idle in OPTIONS.items() if _said(mapping.get(key, idle[0])) not in idle]
    idle = [key for key in asked if key not in section.seen]
    if idle:
        raise UserError(f"model.{idle[0]} does nothing: {wish.name} never looks at it.")
    return keep_contract(plan, make, wish, seed)


def elsewhere(key: str, name: str) -> str:
    """That code of a script is not at hand."""
    more = f"; in Python, restrain.open_run(RUN).model(build={name.removeprefix(SCRIPT)}) has the network"
    return (
        f"{key} is {name}: its code is in the script that started the run, and nowhere else. Run that script again, "
        f"with the same run=, to go on with it{more if key == 'model.name' else ''}."
    )


# What a network of one's own may leave alone, with the values that ask for nothing.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "zero_init": ("auto", False),
    "stem": ("basic",),
    "downsample": ("conv",),
    "blurpool": (False,),
    "feedback": ("exact",),
    "join": ({"name": "add"}, {"name": "add", "scale": "one"}),
    "shape": ({},),
    "transformer": ({},),
}


def _said(value: Any) -> Any:
    """A value of a section; of an inner section, the keys that say anything."""
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, Mapping) else value


class Looked(dict):
    """A section that knows which of its keys were asked for; all of them, where it was gone through."""

    def __init__(self, section: Mapping[str, Any]):
        super().__init__(section)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self.seen.update(super().keys())
        return super().__iter__()

    def keys(self) -> KeysView[str]:
        self.seen.update(super().keys())
        return super().keys()

    def items(self) -> ItemsView[str, Any]:
        self.seen.update(super().keys())
        return super().items()


def generators() -> tuple[Any, ...]:
    """The state of the generators of ``random`` and numpy, which a model must leave as they are."""
    return random.getstate(), str(np.random.get_state(legacy=False))


def keep_contract(plan: nn.Module, make: Callable[[], nn.Module], wish: ForeignWish, seed: int) -> nn.Module:
    """``plan``, on the meta device, under the contract; elsewhere one that ``make`` builds anew, on the CPU.

    Its attribute ``notices`` holds what a person should be told.
    """
    from restrain.models.foreign.adopt import adopt  # imports timm
    from restrain.models.foreign.trial import copy_marks

    with torch.device("meta"):
        notices = adopt(plan, wish.name)
        _check_drops(plan, wish)
        notices += _tried(plan, wish)
    model = plan
    if torch.get_default_device().type != "meta":
        with torch.device("cpu"), KeyedDraws(seed):
            model = make()
        adopt(model, wish.name)
        copy_marks(plan, model)
    model.notices = notices  # pyright: ignore[reportArgumentType]
    return model


def _check_drops(model: nn.Module, wish: ForeignWish) -> None:
    drops = any(join.drops for _, join in named_joins(model))
    if wish.rate and not drops:
        raise UserError(no_drop_path(wish))
    if drops and not wish.rate:
        raise UserError(f"model.drop_path.rate is 0, but {wish.name} drops paths at rates of its own.")


def _tried(model: nn.Module, wish: ForeignWish) -> list[str]:
    """A trial of the model where its images are known; what it wants to be told."""
    from restrain.models.foreign.trial import trial

    if not wish.sides:
        return []
    try:
        return trial(model, wish.name, wish.classes, wish.in_chans, wish.sides)
    except MISFITS as error:
        raise UserError(unfit(wish, error)) from error


def no_drop_path(wish: ForeignWish) -> str:
    return f"model.drop_path.rate is {wish.rate}, but {wish.name} has no stochastic depth: leave it at 0."


def unfit(wish: ForeignWish, error: Exception) -> str:
    """Why a model cannot be built, or doesn't take the images."""
    said = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    if not wish.sides:
        return f"model.name: {wish.name} cannot be built: {said}."
    sizes = ", ".join(f"{side} x {side}" for side in dict.fromkeys(wish.sides))
    return (
        f"model.name: {wish.name} does not take images of {sizes} pixels (resolution.train, .eval and .schedule): "
        f"{said}. Choose a size that the model takes, the same for training and evaluation where it takes one alone."
    )
