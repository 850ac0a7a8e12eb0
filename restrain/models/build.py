"""From the recipe's ``model`` section to a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from restrain.errors import UserError, nearest

from .init import init_model
from .norm import GroupedBatchNorm2d
from .residual import drop_rate, join_class, residual_blocks
from .resnet import SPECS, BlockOptions, ResNet, ResNetSpec

KEYS = (
    "name",
    "classes",
    "in_chans",
    "join",
    "zero_init",
    "freeze",
    "drop_path",
    "stem",
    "downsample",
    "blurpool",
    "init",
)


def build_model(mapping: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The model of a recipe's ``model`` section: ``{name, classes, in_chans, join, zero_init, freeze, drop_path}``.

    Under ``torch.device("meta")`` nothing is allocated (see ``materialise``); otherwise the weights are those that
    ``init_model`` makes of ``seed``. No generator is read. UserError for a key or value that does not exist.
    """
    for key in mapping:
        if key not in KEYS:
            raise UserError(f"model.{key} does not exist; its keys are {', '.join(KEYS)}.{nearest(key, KEYS)}")
    name = mapping.get("name")
    if name not in MODELS:
        raise UserError(f"model.name is {name!r}; the models are {', '.join(MODELS)}.{nearest(str(name), MODELS)}")
    if "classes" not in mapping:
        raise UserError("model.classes is missing: the number of classes.")
    model = MODELS[name](mapping)
    if not any(parameter.is_meta for parameter in model.parameters()):
        init_model(model, seed)
    freeze(model, mapping.get("freeze") or [])
    return model


def build_resnet(spec: ResNetSpec, mapping: Mapping[str, Any]) -> ResNet:
    """A ResNet of the given size with the recipe's join, drop path and zero initialisation."""
    join = join_class((mapping.get("join") or {}).get("name", "add"))
    drop_path = mapping.get("drop_path") or {}
    rate, decay, mode = drop_path.get("rate", 0.0), drop_path.get("decay", "linear"), drop_path.get("mode", "sample")
    if rate and not join.keeps_shortcut:
        raise UserError(
            f"model.drop_path.rate is {rate}, but with model.join.name={join.name} there is no path to drop."
        )
    if mode != "sample":
        raise UserError(f"model.drop_path.mode is {mode!r}; the modes are sample.")
    zero_init = mapping.get("zero_init", "auto")
    if zero_init == "auto":
        # A branch that starts at zero makes the block an identity (Goyal et al. 2017, section 5.1); without a shortcut
        # it would make the network a constant.
        zero_init = join.keeps_shortcut
    blocks = sum(spec.depths)
    rates = tuple(drop_rate(rate, decay, depth, blocks) for depth in range(blocks))
    return ResNet(spec, mapping["classes"], mapping.get("in_chans", 3), BlockOptions(join, rates, bool(zero_init)))


# Another model is a line here.
MODELS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    name: partial(build_resnet, spec) for name, spec in SPECS.items()
}


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Freeze ``stem``, ``head``, ``block:3`` or ``block:0-3`` (in depth order, both ends included).

    Their parameters take no gradient and their BatchNorms stay in evaluation mode under ``.train()``.
    """
    for part in parts:
        for module in _modules(model, part):
            module.requires_grad_(False)
            for norm in module.modules():
                if isinstance(norm, GroupedBatchNorm2d):
                    norm.frozen = True
                    norm.eval()


def _modules(model: nn.Module, part: str) -> list[nn.Module]:
    blocks = [block for _, block in residual_blocks(model)]
    kind, _, span = part.partition(":")
    if kind in ("stem", "head") and not span and isinstance(model, ResNet):
        return model.part(kind)
    first, _, last = span.partition("-")
    if kind != "block" or not first.isdecimal() or (last and not last.isdecimal()):
        raise UserError(f"model.freeze has {part!r}; it takes stem, head, block:3 or block:0-3.")
    low, high = int(first), int(last or first)
    if not low <= high < len(blocks):
        raise UserError(f"model.freeze has {part!r}, but the model's blocks are 0-{len(blocks) - 1}.")
    return list(blocks[low : high + 1])
