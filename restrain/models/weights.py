"""Weights from elsewhere into a model: everything fits by name and shape, or the model stays as it is.

Parts are left fresh, and position embeddings resized, only where the recipe asks for it; each is told.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from restrain.errors import UserError


@dataclass(frozen=True)
class Fitted:
    """Tensors that fit a model by name and shape, and what was done to make them fit."""

    tensors: dict[str, Tensor]
    notices: list[str] = field(default_factory=list)


def fit_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, *, reset_head: bool = False, interpolate: bool = True
) -> Fitted:
    """``tensors`` (those of a state dict) as ``model`` takes them; ``model`` may be on the meta device.

    ``source`` names where they come from in messages. ``reset_head``: the classifier keeps its own weights.
    ``interpolate``: position embeddings and bias tables are resized by timm's own rule for the model.

    Raises:
        UserError: names are missing or unexpected, or shapes differ: the first three and their number are told.
    """
    wanted = _own_tensors(model)
    # Weights in a published layout have other names than ours: a model that knows one says which is which.
    found = model.published(tensors) if hasattr(model, "published") else dict(tensors)  # pyright: ignore
    notices = []
    heads = tuple(f"{name}." for name in heads_of(model))
    if reset_head:
        if not heads:
            raise UserError(f"model.init.reset = [head], but {type(model).__name__} has no classifier to reset.")
        fresh = [name for name in wanted if name.startswith(heads)]
        wanted = {name: tensor for name, tensor in wanted.items() if name not in fresh}
        found = {name: tensor for name, tensor in found.items() if not name.startswith(heads)}
        notices.append(f"head ({', '.join(sorted(fresh))}) keeps its fresh weights")
    if interpolate and _problems(wanted, found):
        found, resized = _resized(model, wanted, found)
        notices += resized
    second = set(model.state_dict()) - set(_own_tensors(model))
    found = {name: tensor for name, tensor in found.items() if name not in second}
    problems = _problems(wanted, found)
    if problems:
        misfits = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
        cure = " Name the model that the weights are of, or other weights."
        if misfits and all(name.startswith(heads) for name in misfits) and not set(found) - set(wanted):
            cure = " The classes are others: model.init.reset=[head] begins with a fresh head."
        raise UserError(f"model.init.from: {source} does not fit {_size(model)}: {'; '.join(problems)}.{cure}")
    return Fitted({name: tensor for name, tensor in found.items() if name in wanted}, notices)


@torch.no_grad()
def load_weights(model: nn.Module, fitted: Fitted) -> None:
    """Copy the tensors into the model's own, which keep dtype, device and memory format."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in fitted.tensors:
            tensor.copy_(fitted.tensors[name])


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the second names of tied parameters, which a run's checkpoint does not have."""
    own: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        own.setdefault(id(tensor), name)
    return {name: state[name] for name in own.values()}


def heads_of(model: nn.Module) -> list[str]:
    """The dotted names of the classifier's modules."""
    if hasattr(model, "part"):
        own = {id(module): name for name, module in model.named_modules()}
        return [own[id(piece)] for piece in model.part("head") if isinstance(piece, nn.Module)]  # pyright: ignore
    from restrain.models.foreign.adopt import head_names  # imports timm

    return head_names(model)


def _size(model: nn.Module) -> str:
    count = sum(p.numel() for p in model.parameters())
    return f"the recipe's model ({type(model).__name__}, {count:,} parameters)"


def _problems(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What does not fit, a phrase each of missing, unexpected and mis-shaped tensors; empty where all does."""
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    shaped = [
        f"{name} {list(found[name].shape)} for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
    return [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds if names]


def _first(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _resized(
    model: nn.Module, wanted: Mapping[str, Tensor], found: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """``found`` through the model's own ``resize``, or the filter that timm has for its weights, and what that resized.

    Only tensors of the same name and another shape count: a filter that renames is for weights in another format.
    """
    timms = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        if hasattr(model, "resize"):
            filtered = model.resize(found)  # pyright: ignore[reportCallIssue]
        elif timms is not None:
            filtered = timms(dict(found), model)
        else:
            return found, []
    except (RuntimeError, AssertionError, ValueError, KeyError, AttributeError, IndexError, TypeError):
        return found, []  # weights that its rule was not made for: told as they are
    result, notices = dict(found), []
    for name, tensor in wanted.items():
        before, after = found.get(name), filtered.get(name)
        if before is None or after is None or before.shape == tensor.shape or after.shape != tensor.shape:
            continue
        result[name] = after
        notices.append(f"{name} resized from {list(before.shape)} to {list(after.shape)}")
    if len(notices) > 3:
        notices = [*notices[:3], f"{len(notices) - 3} more resized like these"]
    return result, notices
