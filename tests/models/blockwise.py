"""What every family with joins owes: its trunk without branches is the skip path, its branches rebuild the output."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from restrain.models import build_model, named_joins, residual_blocks, set_factors

from .parity import randomise


def training_model(name: str, classes: int = 10, **section: Any) -> nn.Module:
    """A model in float64 and training mode, nothing in it zero or one, whose every join drops paths."""
    drop_path = {"rate": 0.5, "decay": "constant"}
    model = build_model({"name": name, "classes": classes, "drop_path": drop_path, **section}).double()
    randomise(model)
    return model.train()


def all_factors(model: nn.Module, rows: int, value: float) -> None:
    set_factors(model, torch.full((len(named_joins(model)), rows), value))


@contextmanager
def recording(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """The (x, branch, y) of every join, in the order of the forward."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    found = [join for _, join in named_joins(model)]
    for join in found:
        join.observers.append(lambda join, x, branch, y: seen.append((x.detach(), branch.detach(), y.detach())))
    try:
        yield seen
    finally:
        for join in found:
            join.observers.clear()


def check_skip_path(model: nn.Module, x: Tensor) -> Tensor:
    """Output with all branch factors 0, which equals that with every block skipped (mode batch), exactly."""
    all_factors(model, len(x), 0.0)
    dropped = model(x)
    blocks = [block for _, block in residual_blocks(model)]
    for block in blocks:
        block.skipped = True
    skipped = model(x)
    for block in blocks:
        block.skipped = False
    all_factors(model, len(x), 1.0)
    assert not torch.allclose(model(x), dropped), "the branches do nothing, so the test proves nothing"
    torch.testing.assert_close(skipped, dropped, rtol=0, atol=0)
    return dropped
