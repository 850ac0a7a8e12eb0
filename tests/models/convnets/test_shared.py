"""Residual networks with shared weights: one set of convolutions a stage, everything else a step's own."""

import copy

import pytest
import torch
from torch import nn

from restrain.models import build_model, init_model, materialise, residual_blocks
from restrain.models.weights import fit_weights, load_weights
from restrain.optim.groups import parameter_groups
from tests.models.blockwise import check_skip_path, training_model
from tests.models.parity import images, on_meta, randomise

MAPPING = {"name": "cifar_shared_resnet20", "classes": 10}


@pytest.mark.parametrize("layers", [20, 56, 110])
def test_the_parameters_of_the_convolutions_do_not_grow_with_depth(layers):
    model, plain = on_meta(f"cifar_shared_resnet{layers}"), on_meta(f"cifar_resnet{layers}")
    assert [name for name, _ in residual_blocks(model)] == [name for name, _ in residual_blocks(plain)]
    shared = {name for name, p in model.named_parameters() if p.ndim == 4}
    assert shared == {
        "conv1.weight",
        *("layer1.0.conv1.weight", "layer1.0.conv2.weight"),
        *("layer2.0.conv1.weight", "layer2.0.conv2.weight", "layer2.1.conv1.weight"),
        *("layer3.0.conv1.weight", "layer3.0.conv2.weight", "layer3.1.conv1.weight"),
    }
    vectors = [{name for name, p in one.named_parameters() if p.ndim < 4} for one in (model, plain)]
    assert vectors[0] == vectors[1]  # BatchNorm of each step on its own


def test_it_computes_what_the_resnet_with_those_weights_computes():
    model = build_model(MAPPING).double()
    randomise(model)
    twin = build_model({"name": "cifar_resnet20", "classes": 10}).double()
    twin.load_state_dict(model.state_dict(), strict=True)
    x = images(16, rows=4)
    for one in (model, twin):
        one.train()(x).square().sum().backward()
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))
    summed = sum(block.conv2.weight.grad for block in twin.layer2)  # backpropagation through time
    torch.testing.assert_close(model.layer2[0].conv2.weight.grad, summed, rtol=1e-10, atol=1e-10)
    assert model.layer2[2].conv2.weight is model.layer2[0].conv2.weight


def test_tied_weights_stay_one_from_meta_to_device():
    model = materialise(on_meta("cifar_shared_resnet20"), "cpu", seed=3)
    assert model.layer1[2].conv1.weight is model.layer1[0].conv1.weight
    built = build_model(MAPPING, seed=3)
    for (name, a), (_, b) in zip(model.state_dict().items(), built.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    twin = copy.deepcopy(model).double()
    assert twin.layer3[2].conv2.weight is twin.layer3[0].conv2.weight
    init_model(twin, seed=4)
    assert not torch.equal(twin.layer1[0].conv1.weight.float(), model.layer1[0].conv1.weight)


def test_a_checkpoint_holds_each_weight_once_and_fits_again():
    """A run's checkpoint has the names of named_parameters; it fits as well as a state dict with every name."""
    model, other = build_model(MAPPING, seed=1), build_model(MAPPING, seed=2)
    once = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    once = {name: tensor for name, tensor in once.items() if not name.endswith("join.factor")}
    assert "layer1.1.conv1.weight" not in once
    for tensors in (once, model.state_dict()):
        load_weights(other, fit_weights(other, tensors, "a file"))
        assert all(
            torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True)
        )
        init_model(other, seed=2)


def test_the_optimizer_sees_each_weight_once():
    groups = parameter_groups(build_model(MAPPING), 1e-4, "none")
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members)) == len(list(build_model(MAPPING).parameters()))


def test_without_branches_the_trunk_is_the_skip_path():
    check_skip_path(training_model("cifar_shared_resnet20"), images(16, rows=4))


def test_its_plain_counterpart_is_a_recurrent_net_without_shortcuts():
    model = build_model(MAPPING | {"join": {"name": "none"}})
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert isinstance(model, nn.Module)
    assert all(block.join.name == "none" for _, block in residual_blocks(model))


def test_a_shared_weight_has_one_random_matrix_of_feedback():
    """In all ways to it: built with weights, from the meta device, in another dtype, filled again."""
    wish = MAPPING | {"feedback": "random"}
    built = build_model(wish, seed=3)
    with torch.device("meta"):
        meta = build_model(wish)
    ways = [built, materialise(meta.double(), "cpu", seed=3), copy.deepcopy(built).double()]
    init_model(ways[2], seed=3)
    for model in ways:
        convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
        by_weight: dict[int, set[int]] = {}
        for conv in convs.values():
            by_weight.setdefault(id(conv.weight), set()).add(conv.feedback.data_ptr())
        assert all(len(matrices) == 1 for matrices in by_weight.values())
        assert len({p for found in by_weight.values() for p in found}) == len(by_weight) < len(convs)
        torch.testing.assert_close(model.layer2[2].conv2.feedback.float(), built.layer2[0].conv2.feedback)
    assert built.state_dict().keys() == build_model(MAPPING).state_dict().keys()
