"""From the recipe's ``model`` section to a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from restrain import packages
from restrain.errors import UserError, nearest
from restrain.models.blocks import residual_blocks
from restrain.models.convnets import alexnet, densenet, preact, resnet, shared, vgg
from restrain.models.early import highway, perceptron, recurrent
from restrain.models.feedback import set_feedback
from restrain.models.foreign.contract import SCRIPT, Build, build_own, elsewhere
from restrain.models.foreign.zoo import PREFIX, build_timm, is_timm
from restrain.models.init import init_model
from restrain.models.norm import GroupedBatchNorm
from restrain.models.transformers import bert, gpt, vit
from restrain.models.wish import Wish

KEYS = (
    "name",
    "classes",
    "in_chans",
    "join",
    "zero_init",
    "freeze",
    "drop_path",
    "feedback",
    "stem",
    "downsample",
    "blurpool",
    "shape",
    "transformer",
    "recurrent",
    "init",
)


def build_model(
    mapping: Mapping[str, Any], seed: int = 0, sides: Sequence[int] = (), own: Build | None = None
) -> nn.Module:
    """The model of a recipe's ``model`` section, ``{name, classes, in_chans, join, ...}``; :data:`KEYS` names all.

    Under ``torch.device("meta")`` nothing is allocated (see ``materialise``); otherwise the weights are those that
    ``init_model`` makes of ``seed``. No generator is read. ``sides``: sides in pixels of the images that the model will
    see, that of training first; a ViT and some of timm's models need them. ``own``: what builds a model of
    the name ``script/...``. ``init`` is not looked at here. UserError for a key or value that does not exist.
    """
    for key in mapping:
        if key not in KEYS:
            raise UserError(f"model.{key} does not exist; its keys are {', '.join(KEYS)}.{nearest(key, KEYS)}")
    name = mapping.get("name")
    if name not in MODELS and not is_foreign(name):
        guess = nearest(str(name), MODELS) or f" One of timm's is written {PREFIX}{name}."
        raise UserError(f"model.name is {name!r}; the models are {', '.join(MODELS)}.{guess}")
    if "classes" not in mapping:
        raise UserError("model.classes is missing: the number of classes.")
    if is_foreign(name):
        model = (
            build_timm(mapping, seed, sides) if is_timm(name) else build_own(_code_of(name, own), mapping, seed, sides)
        )
        freeze(model, mapping.get("freeze") or [])
        return model
    _refuse_idle(str(name), mapping)
    model = MODELS[str(name)](Wish.of({"join": {"name": OWN_JOIN.get(str(name), "add")}, **mapping}, sides))
    set_feedback(model, mapping.get("feedback") or "exact")
    if not any(parameter.is_meta for parameter in model.parameters()):
        init_model(model, seed)
    freeze(model, mapping.get("freeze") or [])
    return model


def _refuse_idle(name: str, mapping: Mapping[str, Any]) -> None:
    """UserError for a key of a section that does nothing for the network. What a transformer takes its spec says."""
    for section in ("shape", "transformer", "recurrent"):
        if name in TRANSFORMERS and section != "recurrent":
            continue
        taken = TAKEN.get(name, {}).get(section, ())
        for key, value in (mapping.get(section) or {}).items():
            if value is not None and key not in taken:
                told = f", whose keys there are {', '.join(taken)}" if taken else f": it takes no model.{section}"
                raise UserError(f"model.{section}.{key} does nothing for {name}{told}.{nearest(key, taken)}")


def is_foreign(name: Any) -> bool:
    """Whether a model's name is that of code that is not ours: timm's, a package's or a script's."""
    return isinstance(name, str) and "/" in name


def _code_of(name: Any, own: Build | None) -> Build:
    """What builds a model of a package or a script."""
    if not name.startswith(SCRIPT):
        return packages.find("model.name", name)
    if own is None:
        raise UserError(elsewhere("model.name", name))
    return own


# Another family is a line here, and one in restrain/recipe/model_names.py. Each: a table of sizes, and what builds one.
FAMILIES: tuple[tuple[Mapping[str, Any], Callable[[Any, Wish], nn.Module]], ...] = (
    (resnet.SPECS, resnet.build),
    (preact.SPECS, preact.build),
    (shared.SPECS, shared.build),
    (densenet.SPECS, densenet.build),
    (vgg.SPECS, vgg.build),
    (alexnet.SPECS, alexnet.build),
    (highway.SPECS, highway.build),
    (perceptron.SPECS, perceptron.build),
    (recurrent.SPECS, recurrent.build),
    (vit.SPECS, vit.build),
    (gpt.SPECS, gpt.build),
    (bert.SPECS, bert.build),
)
MODELS: dict[str, Callable[[Wish], nn.Module]] = {
    name: partial(build, spec) for specs, build in FAMILIES for name, spec in specs.items()
}
# The join of a network that was asked for without one, where it is not to add; recipes have it of model_names.py.
OWN_JOIN = {
    **dict.fromkeys(densenet.SPECS, "concat"),
    **dict.fromkeys(highway.SPECS, "gate"),
    **dict.fromkeys((*vgg.SPECS, *alexnet.SPECS, "rnn"), "none"),
}


TRANSFORMERS = {*vit.SPECS, *gpt.SPECS, *bert.SPECS}
SIZED = {"shape": ("depth", "width")}
# Keys of these sections that do something, of networks that are no transformers; recipes have them of model_names.py.
TAKEN: dict[str, dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("highway_mlp", "highway_mlp_tanh", "skip_perceptron"), SIZED),
    "rnn": SIZED | {"recurrent": ("reads",)},
    "lstm1997": SIZED | {"recurrent": ("reads", "input_bias")},
    "lstm": SIZED | {"recurrent": ("reads", "input_bias", "forget_bias")},
}


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Freeze ``stem``, ``head``, ``block:3`` or ``block:0-3`` (in depth order, both ends included).

    Their parameters take no gradient and their BatchNorms stay in evaluation mode under ``.train()``.
    """
    for part in parts:
        for piece in _pieces(model, part):
            piece.requires_grad_(False)
            for norm in piece.modules() if isinstance(piece, nn.Module) else ():
                if isinstance(norm, GroupedBatchNorm):
                    norm.frozen = True
                    norm.eval()


def _pieces(model: nn.Module, part: str) -> Sequence[nn.Module | nn.Parameter]:
    blocks = [block for _, block in residual_blocks(model)]
    kind, _, span = part.partition(":")
    if kind in ("stem", "head") and not span:
        found = model_part(model, kind)
        if not found:
            raise UserError(f"model.freeze has {kind}, and the model has no part that is known as one.")
        return found
    first, _, last = span.partition("-")
    if kind != "block" or not first.isdecimal() or (last and not last.isdecimal()):
        raise UserError(f"model.freeze has {part!r}; it takes stem, head, block:3 or block:0-3.")
    low, high = int(first), int(last or first)
    if not blocks:
        raise UserError(f"model.freeze has {part!r}, but the model has no residual blocks.")
    if not low <= high < len(blocks):
        raise UserError(f"model.freeze has {part!r}, but the model's blocks are 0-{len(blocks) - 1}.")
    return blocks[low : high + 1]


def model_part(model: nn.Module, part: str) -> Sequence[nn.Module | nn.Parameter]:
    """The modules and parameters of ``stem`` or ``head``."""
    if hasattr(model, "part"):
        return model.part(part)  # pyright: ignore[reportCallIssue]
    from restrain.models.foreign.adopt import parts  # imports timm

    return parts(model, part)
