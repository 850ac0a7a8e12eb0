"""From the recipe's ``optimizer`` section to a fused torch optimizer whose state exists before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from restrain.errors import UserError, nearest

from .groups import parameter_groups


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


def build_sgd(section: Any, groups: list[dict[str, Any]], lr: float) -> SGD:
    """SGD as torch has it: momentum without dampening, decay added to the gradient."""
    optimizer = SGD(groups, lr=lr, momentum=section.momentum, nesterov=section.nesterov, fused=True)
    if section.momentum:
        # torch makes the buffer in the first step, and leaves it uninitialised where `found_inf` masks that step. From
        # zeros the first step is torch's own: 0 x momentum + gradient. zeros_like keeps channels-last strides, which
        # the fused kernel assumes.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_adamw(section: Any, groups: list[dict[str, Any]], lr: float) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    optimizer = AdamW(groups, lr=lr, betas=tuple(section.betas), eps=section.eps, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter].update(
                step=torch.zeros((), dtype=torch.float32, device=parameter.device),
                exp_avg=torch.zeros_like(parameter),
                exp_avg_sq=torch.zeros_like(parameter),
            )
    return optimizer


# Another optimizer is a line here.
OPTIMIZERS: dict[str, Callable[[Any, list[dict[str, Any]], float], Optimizer]] = {
    "sgd": build_sgd,
    "adamw": build_adamw,
}


def build_optimizer(section: Any, model: nn.Module, *, batch_global: int) -> Optimizer:
    """The optimizer of a section with attributes (or a mapping); model on its device, in its memory format.

    Each group's ``initial_lr`` is the base learning rate; a step's ``lr`` is that times ``schedules.factor``. Fused, so
    a 0-dim float tensor in ``optimizer.found_inf`` that is not zero masks a step: weights and state stay as they were.
    """
    if isinstance(section, Mapping):
        section = SimpleNamespace(**section)
    if section.name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise UserError(f"optimizer.name is {section.name!r}; it is one of {known}.{nearest(section.name, OPTIMIZERS)}")
    lr = base_lr(section, batch_global)
    groups = parameter_groups(model, section.weight_decay, section.no_decay)
    optimizer = OPTIMIZERS[section.name](section, groups, lr)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr
    return optimizer
