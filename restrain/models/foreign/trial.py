"""One forward and backward pass of a model that is not ours, before it trains: does it keep what a step relies on?

On the meta device nothing is computed, so a trial costs as little for a large model as for a small one.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from restrain.errors import UserError
from restrain.models.blocks import named_joins, set_factors
from restrain.models.dropout import named_dropouts, set_dropout_keys
from restrain.models.foreign.contract import generators
from restrain.models.norm import GroupedBatchNorm
from restrain.models.residual import DropPath

ROWS = 3
# In models with parts of these files of timm's, tokens or patches are folded into the rows of the batch, image by image
# (tests/models/foreign/test_zoo.py holds it), so that statistics and drop paths over k rows an image are well defined.
IMAGE_BY_IMAGE = ("efficientvit_msra", "levit", "mobilevit")


class Drawing(Exception):
    """An operation of the forward would draw from a generator."""


class NoDraws(TorchDispatchMode):
    """Refuses operations that draw from torch's generators."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and not _idle_attention(func, args, kwargs):
            raise Drawing(str(func))
        return func(*args, **kwargs)


def _idle_attention(func: Any, args: tuple, kwargs: dict) -> bool:
    """Fused attention counts as drawing whatever its dropout; without dropout it draws nothing."""
    names = [argument.name for argument in func._schema.arguments]
    if "scaled_dot_product" not in func._schema.name or "dropout_p" not in names:
        return False
    place = names.index("dropout_p")
    return not (args[place] if place < len(args) else kwargs.get("dropout_p", 0.0))


def trial(model: nn.Module, name: str, classes: int, in_chans: int, sides: Sequence[int]) -> list[str]:
    """Try a training pass at ``sides[0]`` pixels and an evaluation at each side; ``model`` is on the meta device.

    Marks what it finds: the ``spread`` of norms and drop paths, norms and parameters that are never used (frozen, told
    in the notices that are returned).

    Raises:
        UserError: the model does not take images of that size, draws from a generator, or returns something other
            than logits [rows, classes].
    """
    calls, rows, undo = _watch(model)
    states = generators()
    set_factors(model, torch.ones(len(named_joins(model)), ROWS, device="meta"))
    dropouts = [dropout for _, dropout in named_dropouts(model)]
    set_dropout_keys(dropouts, torch.zeros(len(dropouts), ROWS, dtype=torch.int64, device="meta"))
    image = torch.empty(ROWS, in_chans, sides[0], sides[0], device="meta")
    try:
        with NoDraws():
            logits = model.train()(image)
            _check_logits(logits, name, classes)
            logits.sum().backward()
            undo()
            with torch.no_grad():
                for side in dict.fromkeys(sides):
                    seen = model.eval()(torch.empty(ROWS, in_chans, side, side, device="meta"))
                    _check_logits(seen, name, classes)
    except Drawing as error:
        raise UserError(f"model.name: {name} draws from torch's generator in its forward ({error}).") from None
    finally:
        undo()
        model.train()
    if generators() != states:
        raise UserError(f"model.name: {name} draws from a process-wide generator in its forward.")
    _mark_spreads(model, name, calls, rows)
    return [*_mark_unused(model, name, calls), *_shared_drops(model, name, calls)]


def _shared_drops(model: nn.Module, name: str, calls: Counter[int]) -> list[str]:
    """A drop path has one draw a row and step, however many branches of its block it serves; timm draws for each."""
    shared = [m for m in model.modules() if isinstance(m, DropPath) and m.drops and calls[id(m)] > 1]
    if not shared:
        return []
    return [f"{name}: {len(shared)} of its drop paths serve several branches of a block, which are dropped together"]


def _check_logits(logits: Any, name: str, classes: int) -> None:
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (ROWS, classes):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"model.name: {name} does not return logits [rows, classes] in training, but {found}: its way of training "
            f"is another one."
        )


def _watch(model: nn.Module) -> tuple[Counter[int], dict[int, int], Callable[[], None]]:
    """Count the calls of each norm and drop path, and the rows that they see."""
    calls: Counter[int] = Counter()
    rows: dict[int, int] = {}

    def seen(module: nn.Module, inputs: tuple) -> None:
        calls[id(module)] += 1
        if rows.setdefault(id(module), inputs[-1].shape[0]) != inputs[-1].shape[0]:
            rows[id(module)] = -1  # no one number: refused where it matters

    watched = [m for m in model.modules() if isinstance(m, GroupedBatchNorm | DropPath)]
    for module in watched:  # a trial does not drop
        if isinstance(module, DropPath):
            module.drops = False
    handles = [module.register_forward_pre_hook(seen) for module in watched]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        for module in watched:
            if isinstance(module, DropPath):
                module.drops = module.rate > 0.0

    return calls, rows, undo


def _mark_spreads(model: nn.Module, name: str, calls: Counter[int], rows: dict[int, int]) -> None:
    files = {type(module).__module__.rpartition(".")[2] for module in model.modules()}
    for path, module in model.named_modules():
        if not isinstance(module, GroupedBatchNorm | DropPath) or not calls[id(module)]:
            continue
        if isinstance(module, GroupedBatchNorm) and calls[id(module)] > 1:
            raise UserError(f"model.name: {name} uses one BatchNorm {calls[id(module)]} times in a forward ({path}).")
        if isinstance(module, DropPath) and not module.drops:
            continue
        if rows[id(module)] < 0:
            raise UserError(
                f"model.drop_path.rate: {name} uses one drop path for branches of different numbers of rows ({path}), "
                f"which one draw a row cannot serve. Leave it at 0."
            )
        spread, rest = divmod(rows[id(module)], ROWS)
        if rest or (spread != 1 and files.isdisjoint(IMAGE_BY_IMAGE)):
            kind = "normalises" if isinstance(module, GroupedBatchNorm) else "drops paths"
            raise UserError(
                f"model.name: {name} {kind} over rows that are not those of the batch ({path}: {rows[id(module)]} of "
                f"{ROWS} images)."
            )
        module.spread = spread


def _mark_unused(model: nn.Module, name: str, calls: Counter[int]) -> list[str]:
    for _, module in model.named_modules():
        if isinstance(module, GroupedBatchNorm) and not calls[id(module)]:
            module.frozen = True
            module.eval()
    unused = [path for path, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for path in unused:
        model.get_parameter(path).requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    if not unused:
        return []
    return [
        f"{name}: {len(unused)} parameter(s) take no part in training and stay as they are ({', '.join(unused[:3])})"
    ]


def copy_marks(tried: nn.Module, model: nn.Module) -> None:
    """Give ``model`` what a trial of its twin ``tried`` found."""
    for (_, seen), (_, module) in zip(tried.named_modules(), model.named_modules(), strict=True):
        if isinstance(module, GroupedBatchNorm | DropPath):
            module.spread = copy.copy(seen.spread)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(module, GroupedBatchNorm) and seen.frozen:  # pyright: ignore[reportAttributeAccessIssue]
            module.frozen = True
            module.eval()
    for (_, seen), (_, parameter) in zip(tried.named_parameters(), model.named_parameters(), strict=True):
        parameter.requires_grad_(seen.requires_grad)
