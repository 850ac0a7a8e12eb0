"""Initial weights: functions of (seed, name, index), whoever fills them."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from restrain import draws
from restrain.errors import UserError
from restrain.models import Fill, build_model, init_model, init_tensor, materialise, residual_blocks
from restrain.models.init import CHUNK, fills

MAPPING = {"name": "cifar_resnet20", "classes": 10}


def on_meta(mapping=MAPPING) -> nn.Module:
    with torch.device("meta"):
        model = build_model(mapping)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    return model


def fill_with_nan(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -7)


def assert_equal_models(first: nn.Module, second: nn.Module) -> None:
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_nothing_of_the_memory_before_is_left():
    model = on_meta().to_empty(device="cpu")
    fill_with_nan(model)
    init_model(model, seed=3)
    assert all(torch.isfinite(tensor).all() for tensor in [*model.parameters(), *model.buffers()])
    assert_equal_models(model, build_model(MAPPING, seed=3))
    assert_equal_models(model, materialise(on_meta(), "cpu", seed=3))


def test_memory_format_and_seed():
    model = build_model(MAPPING, seed=1)
    last = build_model(MAPPING).to(memory_format=torch.channels_last)
    init_model(last, seed=1)
    assert last.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_equal_models(model, last)
    assert not torch.equal(model.conv1.weight, build_model(MAPPING, seed=2).conv1.weight)


def test_no_generator_is_read():
    before = torch.get_rng_state()
    model = build_model(MAPPING)
    init_model(model, seed=1)
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 500), max_size=4), kind=st.sampled_from(["constant", "normal", "uniform"]))
def test_any_slice_has_the_values_of_the_whole(cuts, kind):
    fill = Fill(kind, 0.5)
    whole = init_tensor("layer1.0.conv1.weight", fill, 7, 0, 500)
    edges = [0, *sorted(cuts), 500]
    parts = [init_tensor("layer1.0.conv1.weight", fill, 7, a, b) for a, b in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)


def test_values_are_the_documented_key_and_frozen():
    found = init_tensor("fc.weight", Fill("uniform", 1.0), 5, 10, 13)
    keys = draws.mix(5, draws.Purpose.INIT, draws.name_key("fc.weight"), torch.arange(10, 13).numpy())
    assert found.tolist() == pytest.approx((2 * draws.uniform(keys) - 1).tolist(), abs=0)
    golden = {
        "uniform": [0.3408887352181429, -0.22331625384477216, -0.9345849796212666],
        "normal": [0.4192602585745005, -0.04968586756129959, 0.23448607925774786],
    }
    for kind, expected in golden.items():
        found = init_tensor("conv1.weight", Fill(kind, 1.0), 0, 0, 3)
        assert found.tolist() == pytest.approx(expected, abs=1e-15)


def test_chunks_leave_no_seam():
    size = CHUNK + 1000
    layer = nn.Conv2d(1, size, 1, bias=False)
    init_model(layer, seed=0)
    expected = init_tensor("weight", fills(layer)["weight"], 0, 0, size).float()
    assert torch.equal(layer.weight.flatten(), expected)


def test_distributions():
    model = build_model({"name": "resnet18", "classes": 1000})
    for layer in (model.conv1, model.layer3[0].conv1, model.layer4[0].downsample[0]):
        weight = layer.weight.double()
        fan_out = weight.shape[0] * weight[0, 0].numel()
        error = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a standard deviation
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=error)
        assert abs(weight.mean().item()) < 5 * math.sqrt(2 / fan_out / weight.numel())
        normed = weight / weight.std()
        assert (normed**4).mean().item() == pytest.approx(3.0, rel=0.2)
    bound = 1 / math.sqrt(512)
    for tensor in (model.fc.weight, model.fc.bias):
        assert tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(("join", "zero_init", "scale"), [("add", "auto", 0), ("none", "auto", 1), ("add", False, 1)])
def test_zero_init_of_the_last_norm(join, zero_init, scale):
    for name, last in (("cifar_resnet20", "bn2"), ("resnet50", "bn3")):
        with torch.device("meta"):
            model = build_model({"name": name, "classes": 10, "join": {"name": join}, "zero_init": zero_init})
        assert fills(model)[f"layer2.1.{last}.weight"] == Fill("constant", scale)
        assert fills(model)["layer2.1.bn1.weight"] == Fill("constant", 1.0)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_preresnet20", "vgg16_bn", "gpt2"])
def test_a_network_of_nothing_but_zeros_is_refused(name):
    with (
        pytest.raises(UserError, match=r"model\.zero_init is true, but .*\.name=none.* constant"),
        torch.device("meta"),
    ):
        build_model({"name": name, "classes": 10, "join": {"name": "none"}, "zero_init": True})


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_preresnet20", "cifar_shared_resnet20"])
def test_no_channel_is_dead_from_the_start(name):
    """Where a shortcut pads with zeros its branch does not start at zero: nothing would ever reach those channels."""
    torch.manual_seed(0)
    x, target = torch.randn(8, 3, 16, 16), torch.arange(8) % 5

    def silent(everywhere: bool) -> int:
        """Output channels of last convolutions that have no gradient in the second step."""
        model = build_model({"name": name, "classes": 5}, seed=1).train()
        if everywhere:
            with torch.no_grad():
                for _, block in residual_blocks(model):
                    (block.bn2.weight if hasattr(block, "bn2") else block.conv2.weight).zero_()
        for _ in range(2):  # the second step has moved whatever the first one could
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(x), target).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
        last = [block.conv2.weight.grad for _, block in residual_blocks(model)]
        return sum(int((gradient.flatten(1).abs().sum(1) == 0).sum()) for gradient in last)

    assert silent(everywhere=False) == 0
    assert silent(everywhere=True) > 0


def test_tied_parameters_are_tied_again():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

    with torch.device("meta"):
        model = Tied()
    materialise(model, "cpu", seed=0)
    assert model.second.weight is model.first.weight
    assert torch.isfinite(model.first.weight).all()
    assert not torch.equal(model.first.bias, model.second.bias)


def test_a_module_without_a_rule_is_an_error():
    with pytest.raises(TypeError, match="No initialisation rule covers 'weight' of PReLU"):
        init_model(nn.Sequential(nn.PReLU()), seed=0)
