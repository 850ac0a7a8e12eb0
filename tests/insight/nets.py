"""Residual networks of a few numbers, whose every value can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from restrain.models import AddJoin, Join, ResidualBlock


class Block(ResidualBlock):
    """x ─┬─ relu(W x) ─ join ─ after ─ y, on vectors [B, D] or tokens [B, T, D]."""

    def __init__(self, width: int, join: Join, after: nn.Module | None = None):
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.act = nn.ReLU()
        self.join, self.after = join, after or nn.Identity()

    def block_forward(self, x: Tensor) -> Tensor:
        return self.after(self.join(x, self.act(self.linear(x))))


def net(joins: list[Join], width: int = 4, after: type[nn.Module] | None = None, dtype=torch.float64) -> nn.Sequential:
    """One block a join, with weights that are a function of the place."""
    blocks = [Block(width, join, after() if after is not None else None) for join in joins]
    model = nn.Sequential(*blocks).to(dtype)
    with torch.no_grad():
        for n, block in enumerate(blocks):
            block.linear.weight.copy_(values(width, width, seed=n + 1, dtype=dtype))
    return model


def values(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Numbers of either sign that are no draws."""
    count = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    return torch.sin(1.7 * count + 0.9 * seed + 0.3).view(shape).to(dtype)


def add(count: int) -> list[Join]:
    return [AddJoin() for _ in range(count)]
