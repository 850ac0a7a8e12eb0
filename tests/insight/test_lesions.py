"""A lesioned network computes what is left of it, and is whole again afterwards."""

import pytest
import torch
from torch import nn

from restrain.insight.lesions import Lesion, applied, lesions
from restrain.models import build_model, residual_blocks
from restrain.models.residual import NoJoin
from tests.insight.nets import add, net, values


def trained(name: str = "cifar_resnet20", **section) -> nn.Module:
    """A network whose every branch matters, in evaluation mode, float64."""
    model = build_model({"name": name, "classes": 10, "zero_init": False, **section}).double().eval()
    with torch.no_grad():
        for n, parameter in enumerate(model.parameters()):
            parameter.copy_(0.1 * values(*parameter.shape, seed=n) + (0.5 if parameter.dim() == 1 else 0.0))
    return model


@torch.no_grad()
def test_a_removed_block_leaves_its_stream() -> None:
    model, x = net(add(3)), values(2, 4)
    with applied(model, Lesion("removed", ("1",))):
        found = model(x)
    assert torch.equal(found, model[2](model[0](x)))


@torch.no_grad()
def test_swapped_blocks_change_places() -> None:
    model, x = net(add(3)), values(2, 4)
    whole = model(x)
    with applied(model, Lesion("swapped", ("0", "1"))):
        found = model(x)
    assert torch.equal(found, model[2](model[0](model[1](x))))
    assert not torch.equal(found, whole)
    assert torch.equal(model(x), whole)


@torch.no_grad()
def test_a_resnet_without_branches_is_its_shortcuts() -> None:
    model, x = trained(), values(2, 3, 16, 16)
    blocks = [name for name, _ in residual_blocks(model)]
    with applied(model, Lesion("prefix", tuple(blocks))):
        found = model(x)
    stream = model.act1(model.bn1(model.conv1(x)))
    for stage in (2, 3):
        stream = getattr(model, f"layer{stage}")[0].downsample(stream)
    assert torch.equal(found, model.fc(stream.mean((2, 3))))


@torch.no_grad()
def test_lesions_are_those_that_the_shapes_allow() -> None:
    found = lesions(trained(), values(2, 3, 16, 16))
    count = {kind: sum(one.kind == kind for one in found) for kind in ("removed", "swapped", "prefix", "suffix")}
    assert count == {"removed": 9, "swapped": 4, "prefix": 9, "suffix": 9}
    swapped = [one.label for one in found if one.kind == "swapped"]
    assert swapped[0] == "layer1.0 <-> layer1.1"
    assert not any("layer2.0" in label or "layer3.0" in label for label in swapped)
    assert [one.label for one in found if one.kind == "suffix"][1] == "last 2"
    assert next(one for one in found if one.label == "last 2").blocks == ("layer3.1", "layer3.2")


@torch.no_grad()
def test_a_plain_block_is_replaced_by_nothing_where_it_keeps_its_shape() -> None:
    model, x = trained(join={"name": "none"}), values(2, 3, 16, 16)
    found = lesions(model, x, ("removed",))
    assert [one.blocks[0] for one in found] == [f"layer{s}.{n}" for s in (1, 2, 3) for n in (0, 1, 2) if s == 1 or n]
    plain = net([NoJoin(), NoJoin()])
    with applied(plain, Lesion("removed", ("0",))):
        assert torch.equal(plain(values(2, 4)), plain[1](values(2, 4)))


@torch.no_grad()
def test_a_network_is_whole_again_after_an_error() -> None:
    model, x = net(add(2)), values(2, 4)
    whole = model(x)
    with pytest.raises(RuntimeError), applied(model, Lesion("removed", ("0",))):
        model(values(2, 5))
    assert torch.equal(model(x), whole)


def test_a_recurrent_step_has_no_lesion() -> None:
    """Its block gives a state, which no input can stand for."""
    for name in ("lstm", "lstm1997", "rnn"):
        model = build_model({"name": name, "classes": 1, "in_chans": 2, "shape": {"width": 4}}).eval()
        assert list(lesions(model, torch.randn(2, 5, 2))) == []
