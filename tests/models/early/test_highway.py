"""Highway networks: what a layer computes, what its gate opens, and the sizes of the papers."""

import pytest
import torch
from torch import nn

from restrain.errors import UserError
from restrain.models import build_model, named_joins, residual_blocks, set_factors
from restrain.models.early.highway import HighwayLayer
from restrain.models.residual import GateJoin

GATE = {"name": "gate", "bias": -2.0}
JOINS = ["none", "add", "gate", "scale", "shortcut_gate", "exclusive_gate", "conv1x1"]
SIZES = {"highway_mlp": {"depth": 6, "width": 12}, "highway_mlp_tanh": {"depth": 6, "width": 12}, "highway_19": {}}


def built(name: str, join=GATE, sides=(8,), **keys) -> nn.Module:
    section = {"name": name, "classes": 5, "in_chans": 1, "join": join, "shape": SIZES.get(name, {}), **keys}
    return build_model(section, 0, sides).double()


def images(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def open_gates(model: nn.Module, bias: float) -> None:
    with torch.no_grad():
        for _, join in named_joins(model):
            assert isinstance(join, GateJoin)
            join.gate.weight.zero_()
            join.gate.bias.fill_(bias)


def without_highways(model: nn.Module, x_BCHW: torch.Tensor) -> torch.Tensor:
    """The network with every highway layer left out: its plain layers, its poolings and its head."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, HighwayLayer):
                setattr(parent, name, nn.Identity())
    return model(x_BCHW)


def test_a_layer_is_the_papers_equation():
    model = built("highway_mlp")
    layer, x_BC = model.layers[0], torch.randn(4, 12, dtype=torch.float64)
    w, b, gate = layer.layer.weight, layer.layer.bias, layer.join.gate
    t_BC = (x_BC @ gate.weight.T + gate.bias).sigmoid()
    wanted = (x_BC @ w.T + b).relu() * t_BC + x_BC * (1 - t_BC)
    torch.testing.assert_close(layer(x_BC), wanted, rtol=0, atol=1e-12)


def test_a_convolutional_gate_sees_what_its_branch_sees():
    layer = next(block for _, block in residual_blocks(built("highway_19")))
    x_BCHW = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    gate, conv = layer.join.gate, layer.layer
    assert gate.weight.shape == conv.weight.shape == (32, 32, 3, 3)
    t_BCHW = nn.functional.conv2d(x_BCHW, gate.weight, gate.bias, padding=1).sigmoid()
    h_BCHW = nn.functional.conv2d(x_BCHW, conv.weight, conv.bias, padding=1).relu()
    torch.testing.assert_close(layer(x_BCHW), h_BCHW * t_BCHW + x_BCHW * (1 - t_BCHW), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SIZES)
def test_gates_that_carry_make_the_trunk_an_identity_and_gates_that_transform_a_plain_net(name):
    x_BCHW = images()
    carrying = built(name)
    open_gates(carrying, -200.0)
    out = carrying(x_BCHW)
    torch.testing.assert_close(out, without_highways(carrying, x_BCHW), rtol=0, atol=1e-12)
    transforming, plain = built(name), built(name, {"name": "none"})
    open_gates(transforming, 200.0)
    plain.load_state_dict(transforming.state_dict(), strict=False)
    torch.testing.assert_close(transforming(x_BCHW), plain(x_BCHW), rtol=0, atol=1e-12)
    assert (transforming(x_BCHW) - out).abs().max() > 1e-3


def mean_gate(model: nn.Module) -> float:
    gates: list[float] = []
    for _, join in named_joins(model):
        join.gate.register_forward_hook(lambda module, args, gate: gates.append(gate.mean().item()))
    model(images())
    return sum(gates) / len(gates)


@pytest.mark.parametrize("name", SIZES)
def test_the_bias_decides_how_far_the_carry_is_open_at_first(name):
    shares = []
    for bias in (-4.0, -1.0):
        shares.append(mean_gate(built(name, {"name": "gate", "bias": bias})))
    assert 0.005 < shares[0] < 0.06  # sigmoid(-4) = 0.018
    assert 0.15 < shares[1] < 0.4  # sigmoid(-1) = 0.27


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("name", SIZES)
def test_with_all_branches_dropped_the_trunk_is_its_skip_path(name, join):
    if join == "none":
        return  # a plain net has no skip path
    model = built(name, {"name": join}, drop_path={"rate": 0.5, "decay": "constant"}).train()
    x_BCHW, count = images(), len(named_joins(model))
    set_factors(model, torch.zeros(count, 3))
    dropped = model(x_BCHW)
    for _, block in residual_blocks(model):
        block.skipped = True
    torch.testing.assert_close(model(x_BCHW), dropped, rtol=0, atol=1e-12)
    if join == "add":
        torch.testing.assert_close(dropped, without_highways(model, x_BCHW), rtol=0, atol=1e-12)


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("name", SIZES)
def test_the_recorded_branches_rebuild_the_output(name, join):
    model, x_BCHW, seen = built(name, {"name": join}), images(), []
    for _, one in named_joins(model):
        one.observers.append(lambda join, x, branch, y: seen.append((join, x, branch, y)))
    out = model(x_BCHW)
    assert len(seen) == len(named_joins(model))
    for one, x, branch, y in seen:
        assert torch.equal(one.joined(x, branch), y)
    if name.startswith("highway_mlp"):  # nothing stands between its joins
        stream = model.stem(x_BCHW.flatten(1))
        for one, _, branch, _ in seen:
            stream = one.joined(stream, branch)
        torch.testing.assert_close(model.head(stream), out, rtol=0, atol=1e-12)


def test_subset_computes_the_kept_rows_alone():
    model = built("highway_mlp", drop_path={"rate": 0.5, "decay": "constant", "mode": "subset"}).train()
    kept = torch.tensor([0, 2])
    whole = built("highway_mlp", drop_path={"rate": 0.5, "decay": "constant"}).train()
    set_factors(whole, torch.tensor([[1.5, 0.0, 1.5]]).repeat(5, 1))
    set_factors(model, torch.full((5, 2), 1.5))
    for _, join in named_joins(model):
        join.rows = kept
    torch.testing.assert_close(model(images()), whole(images()), rtol=0, atol=1e-12)


def conv(one: int, other: int, times: int = 1, kernel: int = 3) -> int:
    return times * (kernel * kernel * one * other + other)


def test_parameters_by_hand():
    """arXiv:1507.06228: about 2.3 M and 1.25 M; a fully connected layer of 50 units has about 5,000."""
    wanted = {
        "highway_19": conv(3, 32) + conv(32, 32, 4) + conv(32, 48) + conv(48, 48, 2) + conv(48, 80) + conv(80, 80, 10)
        + conv(80, 128) + conv(128, 128, 10) + conv(128, 128, kernel=1) + 128 * 10 + 10,
        "highway_32": conv(3, 32) + conv(32, 32, 18) + conv(32, 48) + conv(48, 48, 18) + conv(48, 64)
        + conv(64, 64, 18) + conv(64, 64, kernel=1) + 64 * 10 + 10,
        "highway_mlp": 784 * 50 + 50 + 49 * 2 * (50 * 50 + 50) + 50 * 10 + 10,
    }  # fmt: skip
    for name, count in wanted.items():
        mlp = name == "highway_mlp"
        shape = {"depth": 50} if mlp else {}
        section = {"name": name, "classes": 10, "in_chans": 1 if mlp else 3, "join": GATE, "shape": shape}
        model = build_model(section, 0, (28,))
        assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert round(wanted["highway_19"] / 1e6, 1) == 2.3
    assert round(wanted["highway_32"] / 1e6, 2) == 1.25


def test_layers_by_hand():
    """19 and 32 layers: convolutions, and the last."""
    for name, layers in (("highway_19", 19), ("highway_32", 32)):
        model = built(name, {"name": "none"})
        assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == layers
    assert len(residual_blocks(built("highway_mlp", shape={"depth": 900, "width": 4}))) == 899


def test_deep_ones_begin_with_a_signal():
    """900 layers: neither the output nor the first layer's gradient has died or grown out of bounds."""
    model = built("highway_mlp", shape={"depth": 900}, join={"name": "gate", "bias": -4.0})
    out = model(images(16))
    assert 1e-2 < out.std() < 1e2
    out.square().sum().backward()
    grad = model.stem.weight.grad
    assert torch.isfinite(grad).all()
    assert 1e-4 < grad.norm() < 1e4


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("highway_mlp", {"shape": {}}, r"model\.shape\.depth is missing"),
        ("highway_mlp", {"shape": {"depth": 1}}, r"model\.shape\.depth is 1: highway_mlp has from 2 to 1000"),
        ("highway_mlp", {"sides": ()}, "images of unknown size"),
        ("highway_mlp", {"sides": (8, 12)}, "images of several sizes"),
        ("highway_19", {"join": {"name": "concat"}}, "'concat', which has no place in a highway network"),
        ("highway_19", {"zero_init": True}, r"model\.zero_init is true"),
    ],
)
def test_what_is_refused(name, keys, said):
    with pytest.raises(UserError, match=said):
        built(name, **keys)
