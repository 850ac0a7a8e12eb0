"""What every optimizer of a run must do, whoever wrote it: have its state before its first step, leave no trace of a
step that is refused, and tell how many updates it has made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

FIRST = {"mu_product": 1.0}  # what a slot holds before the first step, where that is not zero (NAdam's product)


def create_state(optimizer: Optimizer) -> None:
    """Make the state exist, as it is before a first step, in the parameters' memory format.

    A checkpoint is restored *into* the live state, and most optimizers make theirs in their first step. So each takes
    one step here with gradients of zero and a learning rate of zero, after which its state is set back: the slots are
    the optimizer's own, whatever its version names them. It also keeps a masked first step of fused SGD from leaving
    uninitialised momentum; from zeros its first step is torch's own, 0 x momentum + gradient.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held, rates = [p.grad for p in parameters], [group["lr"] for group in optimizer.param_groups]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    for parameter, grad in zip(parameters, held, strict=True):
        parameter.grad = grad
    for slots in optimizer.state.values():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                value.fill_(FIRST.get(slot, 0.0))
    set_updates(optimizer, 0)


def guarded_step(optimizer: Optimizer, found_inf: Tensor, step: Callable[[], Any] | None = None) -> None:
    """``optimizer.step()``, or nothing at all where ``found_inf`` (0-dim float on the device) is not zero.

    torch's fused optimizers decide on the device; the others are asked on the host, which waits for the gradients once
    a step. ``_step_supports_amp_scaling`` is the mark by which ``torch.amp.GradScaler`` tells them apart. ``step``: the
    optimizer's own, where something else stands in its place.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
        (step or optimizer.step)()
    elif not found_inf.item():
        (step or optimizer.step)()


def updates(optimizer: Optimizer) -> int | None:
    """Updates made, of an optimizer that counts them in its groups and not in the state of its parameters (LAMB, Adan);
    None of the others. All groups count alike."""
    counts = {int(group["step"]) for group in optimizer.param_groups if "step" in group}
    assert len(counts) <= 1, f"the groups of the optimizer count differently: {sorted(counts)}"
    return counts.pop() if counts else None


def set_updates(optimizer: Optimizer, count: int | None) -> None:
    """Put back what :func:`updates` told."""
    for group in optimizer.param_groups:
        if "step" in group:
            if count is None:
                raise ValueError("this optimizer counts its updates, and no count was given")
            if isinstance(group["step"], Tensor):
                group["step"].fill_(count)
            else:
                group["step"] = count


def slots(optimizer: Optimizer) -> set[str]:
    """Names of the state tensors that it keeps for some of its parameters."""
    return {slot for state in optimizer.state.values() for slot, value in state.items() if isinstance(value, Tensor)}
