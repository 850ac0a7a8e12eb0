"""How a model of ours is held against the same model of others: float64, all that it holds randomised."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from restrain.models import build_model

Mutation = Callable[[nn.Module], None]


def randomise(model: nn.Module) -> None:
    """Every parameter and running statistic: fresh weights prove nothing, their branches may end in zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim > 1:
                tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)


def on_meta(name: str, classes: int = 10, **section: Any) -> nn.Module:
    with torch.device("meta"):
        return build_model({"name": name, "classes": classes, **section})


def like(theirs: nn.Module, name: str, classes: int = 17, **section: Any) -> nn.Module:
    """Our model of the name with their (randomised) tensors, which must fit strictly by name and shape."""
    ours = on_meta(name, classes, **section).double().to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours


def images(height: int, width: int | None = None, rows: int = 2) -> Tensor:
    size = (rows, 3, height, width or height)
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def logit_difference(ours: nn.Module, theirs: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return difference(ours.eval()(x), theirs.eval()(x))


def check_training(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Gradients to 1e-7 and running statistics to 1e-9 after one step in training mode."""
    for model in (ours, theirs):
        model.train()(x).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        other = expected[name].grad
        assert parameter.grad is not None
        assert other is not None
        assert difference(parameter.grad, other) < 1e-7, name
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-9, atol=1e-9)
