"""Any of timm's models by name (``timm/convnext_tiny``), through the block contract of our own.

timm is imported when a model of it is built. How its models keep the contract is :mod:`.foreign.contract`'s matter.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from restrain.errors import UserError, nearest
from restrain.models.foreign.contract import MISFITS, ForeignWish, keep_contract, no_drop_path, unfit

PREFIX = "timm/"
# Options of our own models that timm's have no place for, with the values that ask for nothing.
OWN_OPTIONS = {
    "zero_init": ("auto", False),
    "stem": ("basic",),
    "downsample": ("conv",),
    "blurpool": (False,),
    "feedback": ("exact",),
}


def is_timm(name: Any) -> bool:
    """Whether a model's name is that of one of timm's."""
    return isinstance(name, str) and name.startswith(PREFIX)


def timm_name(section: Mapping[str, Any]) -> str | None:
    """timm's name of the network of a recipe's ``model`` section, ours or its own, whatever its join; or None."""
    import timm

    name = section["name"]
    if is_timm(name):
        return name.removeprefix(PREFIX)
    variant = (section["stem"], section["downsample"], section["blurpool"])
    suffix = {("basic", "conv", False): "", ("deep", "avgpool", False): "d"}.get(variant)
    return name + suffix if suffix is not None and timm.is_model(name + suffix) else None


def build_timm(mapping: Mapping[str, Any], seed: int, sides: Sequence[int] = ()) -> nn.Module:
    """The timm model of a recipe's ``model`` section; its attribute ``notices`` holds what a person should be told.

    ``sides``: sides in pixels of the images that it will see, that of training first; without them it is built for
    timm's own size and not tried. Under ``torch.device("meta")`` nothing is allocated; otherwise it is built on the
    CPU. ``drop_path.rate`` is timm's ``drop_path_rate``: rates rise linearly from 0 in the first block, block by block
    or stage by stage as the model has it.

    Raises:
        UserError: timm has no such model, or it cannot keep the contract; what is in the way is named.
    """
    wish = _wish(mapping, tuple(sides))
    with torch.device("meta"):
        plan, options = _create(wish)
    return keep_contract(plan, lambda: _call(wish, options), wish, seed)


def _wish(mapping: Mapping[str, Any], sides: tuple[int, ...]) -> ForeignWish:
    """What ``mapping`` asks for; UserError for a name that timm does not have, and for options that it cannot take."""
    name = str(mapping["name"]).removeprefix(PREFIX)
    _check_name(name)
    join = (mapping.get("join") or {}).get("name", "add")
    if join != "add":
        raise UserError(f"model.join.name is {join!r}, but timm/{name} adds its branches itself: it takes add alone.")
    for key, idle in OWN_OPTIONS.items():
        if mapping.get(key, idle[0]) not in idle:
            raise UserError(f"model.{key} does nothing for timm/{name}: it is an option of our own ResNets.")
    drop = mapping.get("drop_path") or {}
    if drop.get("decay", "linear") != "linear":
        raise UserError(f"model.drop_path.decay is {drop['decay']!r}, but timm/{name} has timm's own rule: linear.")
    if drop.get("mode", "sample") != "sample":
        raise UserError(f"model.drop_path.mode is {drop['mode']!r}, but timm/{name} drops by sample alone.")
    return ForeignWish.of(mapping, sides)


def _check_name(name: str) -> None:
    import timm

    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise UserError(
            f"model.name: timm has no model {architecture!r}.{_nearest(architecture, known)} It knows {len(known)} "
            f"architectures (timm.list_models() names them)."
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        listed = ", ".join(tags[:12]) + (f" and {len(tags) - 12} more" if len(tags) > 12 else "")
        offered = f"its tags are {listed}.{nearest(tag, tags)}" if tags else "it has no pretrained weights."
        raise UserError(f"model.name: timm/{architecture} has no weights tagged {tag!r}; {offered}")


def _nearest(word: str, known: Sequence[str]) -> str:
    """Nearest name; one that begins alike (``resnet_50``) comes before one that ends alike."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in known}
    same = plain.get(re.sub(r"[^a-z0-9]", "", word.lower()))
    found = f" Did you mean {same!r}?" if same else nearest(word, known)
    return found.replace("mean '", "mean 'timm/")


def _create(wish: ForeignWish) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and the options that it took of those that not every model has."""
    # Both said even where they are 0: some models have others by default.
    options: dict[str, Any] = {"drop_rate": 0.0, "drop_path_rate": wish.rate}
    if wish.sides:
        options["img_size"] = wish.sides[0]
    if len(set(wish.sides)) > 1:
        options |= {"dynamic_img_size": True, "strict_img_size": False, "dynamic_mask": True}
    while True:
        try:
            return _call(wish, options), options
        except TypeError as error:
            said = str(error)
            unknown = [key for key in options if f"'{key}'" in said] if "unexpected keyword" in said else []
            if not unknown:
                raise UserError(unfit(wish, error)) from None
            if "drop_path_rate" in unknown and wish.rate:
                raise UserError(no_drop_path(wish)) from None
            options = {key: value for key, value in options.items() if key not in unknown}
        except MISFITS as error:
            raise UserError(unfit(wish, error)) from None


def _call(wish: ForeignWish, options: Mapping[str, Any]) -> nn.Module:
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm's own deprecations
        return timm.create_model(
            wish.name.removeprefix(PREFIX), num_classes=wish.classes, in_chans=wish.in_chans, **options
        )
