"""What probes read is what the definitions say, and reading leaves no trace."""

import math

import pytest
import torch
from torch import nn

from restrain.insight import stream
from restrain.insight.probe import Probe
from restrain.models import build_model, residual_blocks
from tests.insight.nets import add, net, values


def read(model: nn.Module, x: torch.Tensor):
    probe = Probe(model)
    with probe.attached():
        y = model(x)
    (y**2).mean().backward()
    return probe.take()


def by_hand(model: nn.Module, x: torch.Tensor) -> list[dict[str, float]]:
    """From the definitions, by other operations than the probe's; the gradient by finite differences."""
    found = []
    for n, (_, block) in enumerate(residual_blocks(model)):
        f = torch.relu(x @ block.linear.weight.T)
        y = x + f
        flat_x, flat_f = x.flatten(), f.flatten()
        units = f.reshape(-1, f.shape[-1])
        one = {
            "ratio": float(flat_f.norm() / flat_x.norm()),
            "cosine": float(flat_x @ flat_f / (flat_x.norm() * flat_f.norm())),
            "mean": float(y.mean()),
            "variance": float(((y - y.mean()) ** 2).mean()),
            "dead": float((units == 0).all(0).double().mean()),
            "grad": _slope(model[n + 1 :], y),
        }
        if x.dim() == 3:
            s2 = torch.linalg.svdvals(y) ** 2
            one["rank"] = float((s2.sum(-1) ** 2 / (s2**2).sum(-1)).mean())
        found.append(one)
        x = y
    return found


def _slope(rest: nn.Module, y: torch.Tensor) -> float:
    """Norm of the gradient of the loss by ``y``, each element by a central difference."""
    step, total = 1e-6, 0.0
    with torch.no_grad():
        for n in range(y.numel()):
            away = torch.zeros_like(y)
            away.view(-1)[n] = step
            slope = ((rest(y + away) ** 2).mean() - (rest(y - away) ** 2).mean()) / (2 * step)
            total += float(slope) ** 2
    return total**0.5


@pytest.mark.parametrize("shape", [(5, 4), (3, 6, 4), (2, 3, 4)], ids=["vectors", "long", "short"])
def test_values_are_those_of_the_definitions(shape: tuple[int, ...]) -> None:
    model, x = net(add(3)), values(*shape)
    with torch.no_grad():
        model[1].linear.weight[2] = 0.0  # a dead unit
        expected = by_hand(model, x)
    names, found = read(model, x)
    assert names == ["0.join", "1.join", "2.join"]
    for n, one in enumerate(expected):
        for quantity, value in one.items():
            assert found[quantity][n] == pytest.approx(value, rel=1e-8 if quantity == "grad" else 1e-12), quantity
    assert found["dead"][1] == 0.25
    assert found["gate"] == [None] * 3
    assert (found["rank"] == [None] * 3) == (len(shape) == 2)


def test_gradients_are_scaled_as_asked() -> None:
    model, x = net(add(2)), values(3, 4)
    probe = Probe(model)
    grads = []
    for scale in (1.0, 0.5):
        with probe.attached():
            y = model(x)
        (y**2).mean().backward()
        grads.append(probe.take(scale)[1]["grad"])
    assert grads[1] == pytest.approx([g / 2 for g in grads[0] if g is not None], rel=1e-15)


def test_a_gradient_in_front_of_an_activation_that_works_in_place() -> None:
    """The stream behind a join is written over by the next operation: the reading is of what the join returned."""
    plain, writing = net(add(2), after=nn.ReLU), net(add(2), after=nn.ReLU)
    for block in writing:
        block.after.inplace = True
    assert read(plain, values(3, 4)) == read(writing, values(3, 4))


def test_dead_units_are_channels_of_images() -> None:
    y = values(2, 3, 4, 4).relu()
    y[:, 1] = 0.0
    y[0, 2] = 0.0  # in one row alone
    dead, units = stream.dead_units(y)
    assert (int(dead), units) == (1, 3)


def test_collapsed_tokens_have_rank_one_and_orthogonal_ones_full_rank() -> None:
    one = values(1, 1, 8).expand(3, 5, 8)
    assert float(stream.participation_ratio(one)) == pytest.approx(1.0, rel=1e-12)
    assert float(stream.participation_ratio(torch.eye(6, dtype=torch.float64)[None])) == pytest.approx(6.0, rel=1e-12)


def test_half_precision_is_read_in_a_wider_one() -> None:
    x = torch.full((1, 1, 300, 300), 2.0, dtype=torch.float16)  # the squares add up to 360,000: beyond fp16
    assert float(stream.norm(x)) == 600.0


def test_a_branch_of_zero_has_no_angle() -> None:
    x = values(3, 4)
    zero = torch.zeros_like(x)
    assert float(stream.cosine(x, zero, x.norm() * zero.norm())) == 0.0


def test_nothing_stays_attached_even_after_an_error() -> None:
    model = net(add(2))
    probe = Probe(model)
    with pytest.raises(RuntimeError, match="shapes"), probe.attached():
        model(values(3, 5))
    assert all(not block.join.observers for block in model)
    assert all(not module._forward_hooks for module in model.modules())
    names, found = read(model, values(3, 4))
    assert names == ["0.join", "1.join"]
    assert None not in found["ratio"]


def test_a_block_that_was_not_passed_has_no_values() -> None:
    model, probe = net(add(3)), None
    probe = Probe(model)
    with probe.attached():
        y = model[2](model[0](values(3, 4)))
    y.sum().backward()
    names, found = probe.take()
    assert names == ["0.join", "1.join", "2.join"]
    assert [value is None for value in found["ratio"]] == [False, True, False]


def test_a_block_that_is_passed_twice_has_two_places() -> None:
    model = net(add(1))
    probe = Probe(model)
    with probe.attached():
        y = model[0](model[0](values(3, 4)))
    y.sum().backward()
    names, found = probe.take()
    assert names == ["0.join", "0.join#2"]
    assert found["ratio"][0] != found["ratio"][1]


def test_frozen_networks_have_no_gradient() -> None:
    model = net(add(2)).requires_grad_(False)
    probe = Probe(model)
    with probe.attached():
        model(values(3, 4))
    assert probe.take()[1]["grad"] == [None, None]


def test_blocks_that_add_for_themselves_are_read_as_a_whole() -> None:
    timm = pytest.importorskip("timm")
    from restrain.models import build_model

    assert timm is not None
    model = build_model({"name": "timm/vit_tiny_patch16_224", "classes": 10, "in_chans": 3}, sides=(32,))
    probe = Probe(model)
    x = values(2, 3, 32, 32, dtype=torch.float32)
    inputs: list[torch.Tensor] = []
    handles = [b.register_forward_hook(lambda b, i, o: inputs.append(i[0].detach())) for _, b in residual_blocks(model)]
    with probe.attached():
        model(x).sum().backward()
    names, found = probe.take()
    for handle in handles:
        handle.remove()
    assert names == [f"blocks.{n}" for n in range(12)]
    branch = inputs[1] - inputs[0]
    assert found["ratio"][0] == pytest.approx(float(branch.norm() / inputs[0].norm()), rel=1e-5)
    assert all(1.0 <= rank <= 5.0 for rank in found["rank"])


def test_of_a_gated_branch_what_the_gate_lets_through() -> None:
    """At a bias of -6 hardly anything of the branch meets the stream, whatever its own size."""
    model = build_model({"name": "cifar_resnet20", "classes": 3, "join": {"name": "exclusive_gate", "bias": -6.0}})
    names, found = read(model.train(), values(2, 3, 8, 8, dtype=torch.float32))
    assert len(names) == 9
    assert max(found["ratio"]) < 0.05
    assert max(found["gate"]) < 0.05


def test_the_forget_gate_at_each_step_of_time() -> None:
    """Without weights the gates are the sigmoid of their biases."""
    section = {"name": "lstm", "classes": 3, "in_chans": 2, "shape": {"width": 4}, "recurrent": {"forget_bias": 2.0}}
    model = build_model(section)
    for matrix in (model.layers[0].weight_ih, model.layers[0].weight_hh):
        nn.init.zeros_(matrix)
    names, found = read(model, values(2, 5, 2, dtype=torch.float32))
    assert names == ["layers.0.join", *(f"layers.0.join#{t}" for t in range(2, 6))]
    assert found["gate"] == pytest.approx([1 / (1 + math.exp(-2.0))] * 5)
    assert model.layers[0].join.opened is None
