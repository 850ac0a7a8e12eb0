"""From the recipe's ``optimizer`` section to an optimizer whose state exists before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, NAdam, Optimizer

from restrain.errors import UserError, nearest

from .groups import parameter_groups
from .sgdw import DecoupledSGD
from .stepping import create_state, slots


def base_lr(section: Any, batch_global: int) -> float:
    """The learning rate of ``batch_global`` rows a step: ``lr`` as written, or scaled where ``lr_per`` is set.

    ``linear`` is Goyal et al. 2017 (arXiv:1706.02677, section 2.1), ``sqrt`` Krizhevsky 2014 (1404.5997, section 5).
    """
    if section.lr_per is None or section.lr_rule == "none":
        return section.lr
    ratio = batch_global / section.lr_per
    if section.lr_rule == "linear":
        return section.lr * ratio
    if section.lr_rule == "sqrt":
        return section.lr * math.sqrt(ratio)
    raise UserError(f"optimizer.lr_rule is {section.lr_rule!r}; it is linear, sqrt or none.")


def build_sgd(section: Any, groups: list[dict[str, Any]], lr: float) -> Optimizer:
    """SGD as torch has it: momentum without dampening; decay added to the gradient, or decoupled from it."""
    if getattr(section, "decay", "coupled") == "decoupled":
        return DecoupledSGD(groups, lr, section.momentum, section.nesterov)
    return SGD(groups, lr=lr, momentum=section.momentum, nesterov=section.nesterov, fused=True)


def build_adamw(section: Any, groups: list[dict[str, Any]], lr: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    return AdamW(groups, lr=lr, betas=tuple(section.betas), eps=section.eps, fused=True)


def build_nadam(section: Any, groups: list[dict[str, Any]], lr: float) -> Optimizer:
    """torch's NAdam (Dozat 2016) with AdamW's decay; ``momentum_decay`` as torch's."""
    return NAdam(groups, lr=lr, betas=tuple(section.betas), eps=section.eps, decoupled_weight_decay=True)


# timm's optimizers: the class, and what it calls each key of the recipe's section. What is not named stays at timm's
# default. Another one is a line here and a section in the schema.
TIMM: dict[str, tuple[str, dict[str, str]]] = {
    "lamb": ("Lamb", {"betas": "betas", "eps": "eps", "max_grad_norm": "max_grad_norm"}),
    "lars": ("Lars", {"momentum": "momentum", "nesterov": "nesterov", "trust": "trust_coeff", "eps": "eps"}),
    "lion": ("Lion", {"betas": "betas"}),
    "adan": ("Adan", {"betas": "betas", "eps": "eps"}),
    "muon": (
        "Muon",
        {"momentum": "momentum", "nesterov": "nesterov", "steps": "ns_steps", "betas": "betas", "eps": "eps"},
    ),
}


def build_timm(section: Any, groups: list[dict[str, Any]], lr: float) -> Optimizer:
    """The optimizer of timm that :data:`TIMM` names."""
    import timm.optim  # with all its models it takes seconds, which a run with another optimizer need not spend

    name, keys = TIMM[section.name]
    values = {theirs: getattr(section, ours) for ours, theirs in keys.items()}
    return getattr(timm.optim, name)(groups, lr=lr, **values)


PER_TENSOR = ("lamb", "lars", "muon")  # a step takes the norm or the spectrum of a whole parameter

# Another optimizer of torch's is a line here.
OPTIMIZERS: dict[str, Callable[[Any, list[dict[str, Any]], float], Optimizer]] = {
    "sgd": build_sgd,
    "adamw": build_adamw,
    "nadam": build_nadam,
    **dict.fromkeys(TIMM, build_timm),
}


def build_optimizer(
    section: Any,
    model: nn.Module,
    *,
    batch_global: int,
    leaf: Callable[[nn.Parameter], nn.Parameter] = lambda parameter: parameter,
    adopt: Callable[[Optimizer], None] = create_state,
) -> Optimizer:
    """The optimizer of a section with attributes (or a mapping); model on its device, in its memory format.

    Each group's ``initial_lr`` is its base learning rate; a step's ``lr`` is that times ``schedules.factor``. The first
    group has the largest, that of the head where there is layer-wise decay. Steps go through
    :func:`~restrain.optim.stepping.guarded_step`, which leaves weights and state as they were in a step that is masked.
    ``leaf``: what it is given for a parameter of the model, where that is cut over ranks. ``adopt``: makes its state.
    """
    if isinstance(section, Mapping):
        section = SimpleNamespace(**section)
    if section.name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise UserError(f"optimizer.name is {section.name!r}; it is one of {known}.{nearest(section.name, OPTIMIZERS)}")
    lr = base_lr(section, batch_global)
    groups = parameter_groups(model, section.weight_decay, section.no_decay, getattr(section, "layer_decay", None))
    for group in groups:
        group["params"] = [leaf(parameter) for parameter in group["params"]]
        group["lr"] = group["initial_lr"] = lr * group.pop("lr_scale", 1.0)
    optimizer = OPTIMIZERS[section.name](section, groups, lr)
    adopt(optimizer)
    return optimizer


def state_slots(section: Any) -> set[str]:
    """Names of the state tensors that the optimizer of a section keeps, such as ``{"momentum_buffer"}``."""
    groups = [{"params": list(nn.Linear(4, 4).parameters()), "weight_decay": 0.0, "initial_lr": section.lr}]
    optimizer = OPTIMIZERS[section.name](section, groups, section.lr)
    create_state(optimizer)
    return slots(optimizer)
