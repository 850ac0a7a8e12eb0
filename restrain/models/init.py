"""Initial weights from counters: each element is a function of (seed, name, index) and of nothing else.

So any slice of a parameter can be filled on its own, by any rank, on any device, with the values that the whole
would have; no rank needs the whole of a large model, and no generator is read. Which distribution a parameter has is
decided by the module that owns it (:data:`RULES`), in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from restrain.draws import Purpose, extend_torch, key, name_key, normal_torch, signed, uniform_torch
from restrain.models.feedback import BUFFER, share_matrices
from restrain.models.fill import ONE, ZERO, Fill, fan_in_uniform, he_normal
from restrain.models.norm import GroupedBatchNorm

CHUNK = 1 << 16  # elements filled at a time: the int64 and float64 temporaries stay in a core's cache


def _batch_norm(module: nn.Module) -> dict[str, Fill]:
    scale = module.initial_scale if isinstance(module, GroupedBatchNorm) else 1.0
    return {
        "weight": Fill("constant", scale),
        "bias": ZERO,
        "running_mean": ZERO,
        "running_var": ONE,
        "num_batches_tracked": ZERO,
    }


def _conv(module: nn.Module) -> dict[str, Fill]:
    assert isinstance(module, nn.Conv2d)
    return {"weight": he_normal(module.weight), "bias": ZERO}


def _linear(module: nn.Module) -> dict[str, Fill]:
    # torch's own default, kept by torchvision's and timm's ResNets: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for both.
    assert isinstance(module, nn.Linear)
    bound = fan_in_uniform(module.in_features)
    return {"weight": bound, "bias": bound}


def _scale_and_shift(module: nn.Module) -> dict[str, Fill]:
    return {"weight": ONE, "bias": ZERO}


def _embedding(module: nn.Module) -> dict[str, Fill]:
    return {"weight": Fill("normal", 0.02)}  # Radford et al. 2018 (GPT), section 4.1


# For modules that do not say it themselves by a method `fills`. The first type that fits decides. A module with tensors
# of its own and no line here is an error, never a default.
RULES: list[tuple[type[nn.Module], Callable[[nn.Module], dict[str, Fill]]]] = [
    (nn.modules.batchnorm._BatchNorm, _batch_norm),
    (nn.Conv2d, _conv),
    (nn.Linear, _linear),
    (nn.LayerNorm, _scale_and_shift),
    (nn.Embedding, _embedding),
]


def init_tensor(
    name: str, fill: Fill, seed: int, start: int, stop: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Elements [start, stop) of the parameter ``name``, counted in row-major order of its full shape: float64 [n].

    Cast them to the parameter's dtype. Values do not depend on how the range is cut.
    """
    if fill.kind == "constant":
        return torch.full((stop - start,), fill.scale, dtype=torch.float64, device=device)
    prefix = key(seed, Purpose.INIT, name_key(name))
    index = torch.arange(start, stop, dtype=torch.int64, device=device)
    drawn = extend_torch(signed(prefix), index)
    if fill.kind == "normal":
        return normal_torch(drawn).mul_(fill.scale)
    return uniform_torch(drawn).mul_(2.0).sub_(1.0).mul_(fill.scale)


def fills(model: nn.Module) -> dict[str, Fill]:
    """How each parameter and buffer of the model is filled, by its name; TypeError where no rule covers one."""
    found: dict[str, Fill] = {}
    for prefix, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        own += [name for name, _ in module.named_buffers(recurse=False)]
        if not own:
            continue
        covered = _fills_of(module)
        if BUFFER in own:
            covered = covered | {BUFFER: _fill_of_feedback(module, covered["weight"])}
        for name in own:
            if name not in covered:
                raise TypeError(f"No initialisation rule covers {name!r} of {type(module).__name__} ({prefix!r}).")
            found[f"{prefix}.{name}" if prefix else name] = covered[name]
    return found


def _fills_of(module: nn.Module) -> dict[str, Fill]:
    """How a module's own tensors are filled: by its method ``fills``, or by the rule of its type."""
    if hasattr(module, "fills"):
        return module.fills()  # pyright: ignore[reportCallIssue]
    rule = next((rule for kind, rule in RULES if isinstance(module, kind)), None)
    return rule(module) if rule else {}


def _fill_of_feedback(module: nn.Module, fill: Fill) -> Fill:
    """That of the layer's weight; He's where that starts as a constant, since zeros would send nothing down."""
    return fill if fill.kind != "constant" else he_normal(module.weight)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def init_model(model: nn.Module, seed: int) -> None:
    """Fill every parameter and every buffer in place; what the memory held before does not matter.

    Tied parameters are filled once, under the name by which ``named_parameters`` knows them; so are their matrices of
    feedback.
    """
    share_matrices(model)
    rules = fills(model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        _fill(tensor, name, rules[name], seed)


def _fill(tensor: Tensor, name: str, fill: Fill, seed: int) -> None:
    fill_box(tensor, name, fill, seed, (0,) * tensor.ndim, tuple(tensor.shape))


@torch.no_grad()
def fill_box(tensor: Tensor, name: str, fill: Fill, seed: int, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Fill a part of the parameter ``name`` in place: what begins at ``offset`` of the whole, which has ``shape``."""
    if fill.kind == "constant":
        tensor.fill_(fill.scale)
        return
    if tensor.ndim == 0:
        tensor.copy_(init_tensor(name, fill, seed, 0, 1, device=tensor.device)[0])
        return
    # Through row-major copies: the counter runs in logical order of the whole, whatever the memory format. Rows of the
    # part that follow one another in the whole are one run.
    inner = math.prod(shape[1:])
    if tuple(tensor.shape[1:]) == tuple(shape[1:]):
        fill_flat(tensor, name, fill, seed, offset[0] * inner)
        return
    for at, row in enumerate(tensor):
        index = (offset[0] + at) * inner
        whole = init_tensor(name, fill, seed, index, index + inner, device=tensor.device).view(shape[1:])
        row.copy_(whole[tuple(slice(o, o + n) for o, n in zip(offset[1:], row.shape, strict=True))])


@torch.no_grad()
def fill_flat(tensor: Tensor, name: str, fill: Fill, seed: int, first: int) -> None:
    """Fill a part of the parameter ``name`` in place: its elements from ``first`` on, in row-major order of the whole.

    Piece by piece, since what is drawn takes several times the memory of what it becomes.
    """
    if fill.kind == "constant":
        tensor.fill_(fill.scale)
        return
    size = tensor.numel()
    in_place = tensor.is_contiguous()
    flat = tensor.view(-1) if in_place else torch.empty(size, dtype=tensor.dtype, device=tensor.device)
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        flat[start:stop] = init_tensor(name, fill, seed, first + start, first + stop, device=tensor.device)
    if not in_place:
        tensor.copy_(flat.view(tensor.shape))


def materialise(model: nn.Module, device: torch.device | str, seed: int) -> nn.Module:
    """Give a model built on the meta device memory on ``device`` and initial weights, in place; returns it.

    ``to_empty`` separates parameters that were one; they are tied again.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, name))
    model.to_empty(device=device)
    for (first, first_name), *others in owners.values():
        for module, name in others:
            setattr(module, name, getattr(first, first_name))
    init_model(model, seed)
    return model
