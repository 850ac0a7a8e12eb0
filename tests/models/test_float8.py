"""Products in float8: right to the format's three bits of mantissa, and of a row whatever is computed beside it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from restrain.errors import UserError
from restrain.models import build_model, float8
from restrain.parallel import precision
from restrain.recipe import load
from restrain.training import network

GPT = {"name": "gpt", "classes": 64, "shape": {"depth": 2, "width": 32, "heads": 2, "context": 16}}


def off(found: torch.Tensor, right: torch.Tensor) -> float:
    return ((found - right).norm() / right.norm()).item()


def test_product_and_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 64, generator=generator, requires_grad=True)
    # Rows of very different sizes: one scale for all would lose the small ones.
    weight = (torch.randn(48, 64, generator=generator) * torch.logspace(-4, 4, 48)[:, None]).requires_grad_()
    bias = torch.randn(48, generator=generator, requires_grad=True)
    away = torch.randn(3, 7, 48, generator=generator)
    found = float8.product(x, weight, bias)
    right = torch.nn.functional.linear(x, weight, bias)
    for column in range(48):
        assert off(found[..., column] - bias[column], right[..., column] - bias[column]) < 0.08
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, weight, bias), away),
        torch.autograd.grad(right, (x, weight, bias), away),
        strict=True,
    ):
        assert off(mine, theirs) < 0.05
    assert off(found, right) > 1e-4  # it is not the product in float32


@given(st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_a_row_does_not_depend_on_its_neighbours(rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(10, 32, generator=generator), torch.randn(16, 32, generator=generator)
    whole = float8.product(x, weight, None)
    assert off(float8.product(x[:rows], weight, None), whole[:rows]) < 1e-6  # but for the order of additions


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    x, weight = torch.ones(2, 16), torch.ones(16, 16)
    x[1, 3] = bad
    found = float8.product(x, weight, None)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


def test_a_row_of_zeros() -> None:
    assert torch.equal(float8.product(torch.zeros(2, 16), torch.ones(16, 16), None), torch.zeros(2, 16))


def test_blocks_multiply_in_it_and_the_head_does_not() -> None:
    model = build_model(GPT, seed=3)
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    right = model(tokens)
    names = model.state_dict().keys()
    float8.apply(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens)
    assert len(float8.layers(model)) == 2 * 4
    assert model.state_dict().keys() == names
    assert 1e-3 < off(found.float(), right) < 0.1


def test_refused_where_it_cannot_be() -> None:
    model = build_model(GPT, seed=0)
    with pytest.raises(UserError, match=r"precision=fp8 needs a GPU that multiplies float8.* and this is a CPU"):
        precision.check_float8(torch.device("cpu"), model, 1)
    recipe = load("shakespeare_gpt", ["precision=fp8", "model.classes=65"]).recipe
    with pytest.raises(UserError, match="needs a GPU"):
        network.check_model(recipe, device=torch.device("cpu"))


def test_refused_for_what_it_is_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    device = torch.device("cuda")
    precision.check_float8(device, build_model(GPT, seed=0), 1)
    with pytest.raises(UserError, match=r"parallel\.tensor=2"):
        precision.check_float8(device, build_model(GPT, seed=0), 2)
    with pytest.raises(UserError, match="ResNet has none"):
        precision.check_float8(device, build_model({"name": "cifar_resnet20", "classes": 10}, seed=0), 1)
