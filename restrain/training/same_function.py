"""Whether weights mean in a network what they meant where they were trained: shapes alone do not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.build import build_model, is_foreign
from restrain.models.transformers.gpt2_layout import is_gpt2
from restrain.recipe import Recipe, differences, load
from restrain.recipe.checks import show
from restrain.recipe.model_names import family_of

if TYPE_CHECKING:
    from restrain.training.start_weights import Source

# What changes a network's function and leaves the shapes of its weights as they are.
OPTIONS = ("join.name", "join.shortcut", "join.branch", "stem", "downsample", "blurpool")
ATTENTION = ("heads", "norm", "order", "position", "activation", "qk_norm", "causal")
# GPT-2's published networks, as far as the shapes of their files do not say it.
GPT2 = {"position": ("learned",), "order": ("pre",), "activation": ("gelu_tanh", "gelu")}
VARIANT = ("stem", "downsample", "blurpool")  # what timm has other names for
Apart = tuple[str, Any, Any]  # a key below ``model``, what it is there, what it is here


def check_function(recipe: Recipe, model: nn.Module, source: Source, tensors: Mapping[str, Tensor]) -> list[str]:
    """UserError where the weights were trained in a network that computes something else with them, as far as the run
    or the name tells; of a file it is not known, so that a difference from the named network is announced."""
    ours = recipe.model
    if source.run is not None:
        found = _apart(load(str(source.run.lock_file)).recipe.model, ours, model)
        if found:
            raise UserError(
                f"model.init.from: {source.run.path} trained its weights in a network that computes something else "
                f"with them: {_listed(found)}. Set these as they are there, or, to start from the bare numbers on "
                f"purpose, export them (restrain export {source.run.path}) and name the .safetensors file."
            )
        return []
    assert ours.init is not None
    if is_foreign(ours.name):
        return []
    if ours.init.from_ == "timm":
        found = _apart(_named(ours, VARIANT), ours, model)
        if found:
            raise UserError(
                f"model.init.from: {source.what} is of {ours.name}, and this network computes something else with "
                f"the same weights: {_listed(found)}. Leave these out, or, to start from the bare numbers on purpose, "
                f"name the .safetensors file ({source.path})."
            )
        return []
    found = _apart(_named(ours), ours, model)
    if is_gpt2(tensors) and hasattr(model, "published"):
        return _same_as_gpt2(source, model, found)
    if not found:
        return []
    return [f"{source.what} is taken as bare numbers; this network is not {ours.name} as it is named: {_listed(found)}"]


def _same_as_gpt2(source: Source, model: Any, found: list[Apart]) -> list[str]:
    """UserError where a file in GPT-2's layout would compute something else; what to announce of one that nearly
    computes the same."""
    found = [one for one in found if one[0].removeprefix("transformer.") not in GPT2]
    for key, allowed in GPT2.items():
        if (value := getattr(model.spec, key)) not in allowed:
            found.append((f"transformer.{key}", allowed[0], value))
    if found:
        raise UserError(
            f"model.init.from: {source.what} is in the layout of GPT-2's published weights, and this network computes "
            f"something else with them: {_listed(found)}. Set these as they are there."
        )
    if model.spec.activation == "gelu":
        return [
            f"{source.what} is in GPT-2's layout, whose published weights are of model.transformer.activation="
            f"gelu_tanh; this network has gelu, which is close to it"
        ]
    return []


def _named(model: Any, keep: tuple[str, ...] = ()) -> Any:
    """The ``model`` section of the network by its name alone; of one of any size with the recipe's sizes."""
    section = model.model_dump(by_alias=True)
    family = family_of(model.name)
    free = family is not None and family[0] == model.name  # a family's own name is of any size
    kept = ("name", "classes", "in_chans", *keep, *(("shape",) if free else ()))
    return type(model).model_validate({key: section[key] for key in kept})


def _apart(theirs: Any, ours: Any, model: nn.Module) -> list[Apart]:
    """What makes ``model``, of the section ``ours``, compute something else than the network of the section
    ``theirs`` with weights of the same names and shapes."""
    found = [(key, a, b) for key, a, b in differences(theirs, ours) if key in OPTIONS]
    spec = getattr(model, "spec", None)
    if spec is not None and not is_foreign(theirs.name):
        with torch.device("meta"):
            other = getattr(build_model(theirs.model_dump()), "spec", None)
        pairs = [(key, getattr(other, key, None), getattr(spec, key, None)) for key in ATTENTION]
        found += [
            (f"{'shape' if key == 'heads' else 'transformer'}.{key}", a, b)
            for key, a, b in pairs
            if None not in (a, b) and a != b
        ]
    return found


def _listed(found: list[Apart]) -> str:
    return "; ".join(f"model.{key} is {show(b)}, there it is {show(a)}" for key, a, b in found)
