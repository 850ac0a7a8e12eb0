"""SGD with decoupled weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import SGD


class DecoupledSGD(SGD):
    """SGDW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 1): p <- p (1 - w lr / lr_0), then a step of SGD.

    ``w`` is the group's ``decoupled_decay`` and lr_0 its ``initial_lr``, so that weights shrink by the decay times the
    schedule's factor, whatever the learning rate is. ``found_inf`` masks the shrinking as it masks torch's fused step.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, nesterov: bool):
        groups = [{**group, "decoupled_decay": group["weight_decay"], "weight_decay": 0.0} for group in groups]
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            shrink = group["decoupled_decay"] * group["lr"] / group["initial_lr"]
            if not shrink or not parameters:
                continue
            keep = torch.full((), 1.0 - shrink, dtype=parameters[0].dtype, device=parameters[0].device)
            if found_inf is not None:
                keep = torch.where(found_inf == 0, keep, torch.ones_like(keep))
            torch._foreach_mul_(parameters, keep)  # pyright: ignore[reportPrivateImportUsage]
        super().step()
        return loss
