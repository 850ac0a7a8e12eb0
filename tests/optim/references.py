"""The optimizers of a recipe beside their references: torch's and timm's own classes, driven by a plain loop.

``python -m tests.optim.references`` prints the largest difference after 50 steps as a table.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import timm.optim
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F

from restrain.optim import schedules
from restrain.optim.optimizers import build_optimizer
from restrain.optim.stepping import guarded_step
from restrain.recipe.schema_optim import Optimizer, Schedule

STEPS, EPOCH = 50, 10
WEIGHT_DECAY = 0.02


class Sgdw(torch.optim.SGD):
    """SGDW by its definition: weights shrink by the decay times the schedule's factor, then torch's own SGD steps."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - group["shrink"] * group["lr"] / group["initial_lr"])
        super().step()


def sgdw(groups: list[dict], **keys: Any) -> torch.optim.Optimizer:
    """torch's SGD after a shrinking by hand."""
    return Sgdw([{**g, "shrink": g["weight_decay"], "weight_decay": 0.0} for g in groups], **keys)


def nadamw(groups: list[dict], **keys: Any) -> torch.optim.Optimizer:
    """torch's NAdam with decoupled decay."""
    return torch.optim.NAdam(groups, decoupled_weight_decay=True, **keys)


Make = Callable[..., torch.optim.Optimizer]
# The recipe's section, the reference's class, and the reference's keys.
CASES: dict[str, tuple[dict[str, Any], Make, dict[str, Any]]] = {
    "sgd": ({"lr": 0.02}, torch.optim.SGD, {"momentum": 0.9}),
    "sgd nesterov": ({"lr": 0.02, "nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "sgd decoupled": ({"lr": 0.02, "decay": "decoupled"}, sgdw, {"momentum": 0.9}),
    "adamw": ({"lr": 1e-2}, torch.optim.AdamW, {}),
    "nadam": ({"lr": 1e-2}, nadamw, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "lamb": ({"lr": 1e-2}, timm.optim.Lamb, {}),
    "lars": ({"lr": 0.5}, timm.optim.Lars, {"momentum": 0.9}),
    "lion": ({"lr": 1e-3}, timm.optim.Lion, {}),
    "adan": ({"lr": 1e-2}, timm.optim.Adan, {}),
    "muon": ({"lr": 1e-2}, timm.optim.Muon, {"nesterov": True}),
}


def section_of(case: str) -> Any:
    """The validated section of a recipe."""
    keys = {"name": case.split()[0], "weight_decay": WEIGHT_DECAY, "no_decay": "norm_and_bias", **CASES[case][0]}
    return TypeAdapter(Optimizer).validate_python(keys)


SCHEDULE = TypeAdapter(Schedule).validate_python({"name": "cosine", "warmup": "5st", "warmup_from": 0.1, "final": 0.01})


def small() -> nn.Module:
    """Convolutions without biases (under a norm their gradients are rounding errors, which Adam magnifies), norms and a
    linear layer; channels-last, fixed weights."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 5),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model:
            for name, p in module.named_parameters():
                p.copy_(torch.empty(p.shape).normal_(0.0, 0.2, generator=generator))
                if isinstance(module, nn.BatchNorm2d) and name == "weight":
                    p.add_(1.0)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight images [8, 3, 8, 8] and their labels, other ones each step."""
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.empty(8, 3, 8, 8).normal_(generator=generator)
    return images.contiguous(memory_format=torch.channels_last), torch.randint(5, (8,), generator=generator)


def backward(model: nn.Module, step: int) -> float:
    """Set the gradients of a step; its loss."""
    images, labels = batch(step)
    model.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return loss.item()


def ours(case: str, model: nn.Module, steps: range, optimizer: torch.optim.Optimizer | None = None, bad: int = -1):
    """Train as a run does; the gradients of the step ``bad`` are NaN. Returns the optimizer."""
    optimizer = optimizer or build_optimizer(section_of(case), model, batch_global=8)
    for step in steps:
        backward(model, step)
        factor = schedules.factor(SCHEDULE, step, steps_per_epoch=EPOCH, total_steps=STEPS)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        if step == bad:
            for p in model.parameters():
                assert p.grad is not None
                p.grad.fill_(float("nan"))
        guarded_step(optimizer, torch.tensor(float(step == bad)))
    return optimizer


def reference(case: str, model: nn.Module, skip: int = -1) -> None:
    """The reference in a plain loop that knows nothing of Restrain: groups, schedule and all; no update at ``skip``."""
    section, make, keys = CASES[case]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    spared = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": spared, "weight_decay": 0.0}]
    groups = [{**group, "initial_lr": section["lr"]} for group in groups]
    optimizer = make(groups, lr=section["lr"], **keys)
    for step in range(STEPS):
        backward(model, step)
        if step < 5:
            factor = 0.1 + 0.9 * step / 5
        else:
            factor = 0.01 + 0.99 * (1 + math.cos(math.pi * (step - 5) / (STEPS - 5))) / 2
        for group in optimizer.param_groups:
            group["lr"] = section["lr"] * factor
        if step != skip:
            optimizer.step()


def difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def table() -> str:
    """Largest difference of a weight after 50 steps, and how far the weights have moved."""
    rows = ["| optimizer | reference | largest difference | bit-equal | weights moved by |", "|---|---|---|---|---|"]
    for case, (_, make, _) in CASES.items():
        mine, theirs, start = small(), small(), small()
        ours(case, mine, range(STEPS))
        reference(case, theirs)
        gap = difference(mine, theirs)
        library = make.__module__.split(".")[0]
        name = f"{library}'s {make.__name__}" if library in ("torch", "timm") else (make.__doc__ or "").split(".")[0]
        rows.append(f"| {case} | {name} | {gap:.1e} | {'yes' if gap == 0 else 'no'} | {difference(mine, start):.3f} |")
    return "\n".join(rows)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """Everything that a step may change, copied: weights, state tensors and the counters of groups."""
    found: list[Any] = [p.detach().clone() for p in model.parameters()]
    for state in optimizer.state.values():
        found += [v.clone() if isinstance(v, torch.Tensor) else v for v in state.values()]
    return found + [copy.deepcopy(group["step"]) for group in optimizer.param_groups if "step" in group]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
