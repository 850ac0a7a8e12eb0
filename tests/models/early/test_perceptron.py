"""The skip-layer perceptron: a linear model, and a branch that perturbs it."""

import pytest
import torch
from torch import nn

from restrain.errors import UserError
from restrain.models import build_model, named_joins, residual_blocks, set_factors


def built(**keys) -> nn.Module:
    section = {"name": "skip_perceptron", "classes": 5, "in_chans": 1, "shape": {"width": 7}}
    return build_model(section | keys, 0, (8,)).double()


def images(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_it_is_the_books_equation():
    model, x = built(), images().flatten(1)
    block = model.block
    (hidden,) = block.hidden
    wanted = block.skip.bias + x @ block.skip.weight.T
    wanted = wanted + (hidden.bias + x @ hidden.weight.T).sigmoid() @ block.output.weight.T
    torch.testing.assert_close(model(images()), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 3])
def test_with_its_branch_at_zero_it_is_the_linear_model(depth):
    model = built(drop_path={"rate": 0.5}, shape={"width": 7, "depth": depth}).train()
    set_factors(model, torch.zeros(1, 3))
    linear = nn.Linear(64, 5).double()
    linear.load_state_dict(model.block.skip.state_dict())
    assert torch.equal(model(images()), linear(images().flatten(1)))
    one, other = images(), images().flip(0)
    mean = (model(one) + model(other)) / 2
    torch.testing.assert_close(model((one + other) / 2), mean, rtol=0, atol=1e-12)
    set_factors(model, torch.ones(1, 3))
    assert (model((one + other) / 2) - (model(one) + model(other)) / 2).abs().max() > 1e-4
    model.block.skipped = True
    assert torch.equal(model(images()), linear(images().flatten(1)))


@pytest.mark.parametrize("join", ["none", "add", "gate", "scale", "shortcut_gate", "conv1x1"])
def test_the_recorded_branch_rebuilds_the_output(join):
    model, seen = built(join={"name": join}), []
    ((_, one),) = named_joins(model)
    one.observers.append(lambda join, x, branch, y: seen.append((x, branch)))
    out = model(images())
    ((x, branch),) = seen
    assert torch.equal(one.joined(x, branch), out)
    if join == "none":
        assert torch.equal(branch, out)
        assert "block.skip.weight" not in model.state_dict()


def test_parameters_by_hand():
    """p inputs, h hidden, k outputs: (p + 1) h + (h + 1) k of the perceptron, p k of the skip layer."""
    for join, skip in (("add", 64 * 5), ("none", 0)):
        found = sum(parameter.numel() for parameter in built(join={"name": join}).parameters())
        assert found == 65 * 7 + 8 * 5 + skip
    deep = built(shape={"width": 7, "depth": 3})
    assert sum(parameter.numel() for parameter in deep.parameters()) == 65 * 7 + 2 * 8 * 7 + 8 * 5 + 64 * 5
    assert [name for name, _ in residual_blocks(deep)] == ["block"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"shape": {}}, r"model\.shape\.width is missing"),
        ({"join": {"name": "concat"}}, "'concat', which has no place in a skip-layer perceptron"),
        ({"drop_path": {"rate": 0.2, "mode": "subset"}}, "reads the inputs and not the stream"),
        ({"zero_init": True}, "has no norm to start at zero"),
    ],
)
def test_what_is_refused(keys, said):
    with pytest.raises(UserError, match=said):
        built(**keys)
