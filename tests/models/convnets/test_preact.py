"""Pre-activation ResNets against timm, and against what He et al. 2016 (arXiv:1603.05027) say of theirs."""

import pytest
import timm
import torch
from torch import nn

from restrain.errors import UserError
from restrain.models import build_model, residual_blocks
from restrain.models.convnets.resnet import Subsample
from restrain.models.init import fills
from tests.models.blockwise import check_skip_path, recording, training_model
from tests.models.parity import check_training, images, like, logit_difference, on_meta, randomise

TIMM = ["resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_101", "resnetv2_152"]
DEEP = [pytest.param(name, marks=pytest.mark.slow) if name == "resnetv2_152" else name for name in TIMM]
SMALL = ["cifar_preresnet20", "resnetv2_18", "resnetv2_50"]


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    theirs = timm.create_model(name, num_classes=17).double()
    randomise(theirs)
    return like(theirs, name), theirs


@pytest.mark.parametrize("name", TIMM)
def test_logits_are_timms(name):
    assert logit_difference(*pair(name), images(64)) < 1e-9


@pytest.mark.parametrize("name", DEEP)
def test_training_gradients_and_statistics_are_timms(name):
    check_training(*pair(name), images(64))


def stride_to_conv1(model: nn.Module) -> None:
    for _, block in residual_blocks(model):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def shortcut_without_activation(model: nn.Module) -> None:
    for _, block in residual_blocks(model):
        block.shares_activation = False


@pytest.mark.parametrize("mutate", [stride_to_conv1, shortcut_without_activation])
@pytest.mark.parametrize("name", ["resnetv2_18", "resnetv2_50"])
def test_the_same_check_catches(name, mutate):
    ours, theirs = pair(name)
    mutate(ours)
    assert logit_difference(ours, theirs, images(64)) > 1e-3


def test_200_layers_are_the_papers_stages_of_the_same_block():
    ours, like_it = on_meta("resnetv2_200"), on_meta("resnetv2_152")
    assert [len(stage.blocks) for stage in ours.stages] == [3, 24, 36, 3]
    counted = sum(isinstance(module, nn.Conv2d) for module in ours.modules())
    assert counted - 4 == 200  # with the classifier; without the projections of four stages
    for stage, other in zip(ours.stages, like_it.stages, strict=True):
        for index in (0, 1):
            shapes = [p.shape for p in stage.blocks[index].parameters()]
            assert shapes == [p.shape for p in other.blocks[index].parameters()]


@pytest.mark.parametrize("layers", [20, 56, 110, 164, 1001])
def test_cifar_sizes_have_as_many_layers_as_they_say(layers):
    model = on_meta(f"cifar_preresnet{layers}")
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    projections = [block.downsample for _, block in residual_blocks(model) if hasattr(block.downsample, "conv")]
    assert len(convolutions) - len(projections) == layers
    assert len(projections) == (3 if layers in (164, 1001) else 0)


def test_basic_shortcuts_of_cifar_sizes_have_no_parameters():
    model = on_meta("cifar_preresnet20")
    shortcuts = [block.downsample for _, block in residual_blocks(model)]
    assert [index for index, shortcut in enumerate(shortcuts) if shortcut is not None] == [3, 6]
    assert all(isinstance(shortcuts[index], Subsample) for index in (3, 6))


def test_the_first_unit_is_activated_before_it_splits_and_no_other():
    """The paper's appendix; so x_L = x_1 + sum f holds from the first unit's activation on."""
    assert [block.shares_activation for _, block in residual_blocks(on_meta("cifar_preresnet20"))] == [True] + [
        False
    ] * 8


# ------------------------------------------------------------------------------------------------- joins and drop path


@pytest.mark.parametrize("name", SMALL)
def test_without_branches_the_trunk_is_the_skip_path(name):
    model, x = training_model(name), images(32, rows=4)
    dropped = check_skip_path(model, x)
    stream = model.stem(x)
    for _, block in residual_blocks(model):
        if block.shares_activation:
            stream = torch.relu(block.norm1(stream))
        stream = stream if block.downsample is None else block.downsample(stream)
    expected = model.head(torch.relu(model.norm(stream)))
    assert torch.equal(dropped, expected)


@pytest.mark.parametrize("name", SMALL)
def test_recorded_branches_rebuild_each_stage(name):
    """x_L = x_l + sum of the branches between (equation 4), as nothing stands on the shortcuts of a stage."""
    model, x = training_model(name), images(32, rows=4)
    with recording(model.eval()) as seen:
        model(x)
    first = 0
    for stage in model.stages:
        joins = seen[first : first + len(stage.blocks)]
        rebuilt = joins[0][0] + sum(branch for _, branch, _ in joins)
        torch.testing.assert_close(joins[-1][2], rebuilt, rtol=1e-12, atol=1e-12)
        first += len(stage.blocks)
    assert first == len(seen)


@pytest.mark.parametrize(
    "join", ["add", "none", "gate", "scale", "shortcut_gate", "exclusive_gate", "conv1x1", "dropout"]
)
@pytest.mark.parametrize("name", ["cifar_preresnet20", "resnetv2_50"])
def test_every_join_of_the_paper_and_before_trains(name, join):
    model = build_model({"name": name, "classes": 5, "join": {"name": join}}).eval()
    randomise(model)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with recording(model) as seen:
        logits = model(x)
    logits.square().sum().backward()
    assert logits.shape == (2, 5)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(seen) == len(residual_blocks(model))
    kept = [torch.equal(branch, y) for _, branch, y in seen]
    assert all(kept) if join == "none" else not any(kept)


def test_a_plain_net_has_no_projections():
    assert all(block.downsample is None for _, block in residual_blocks(on_meta("resnetv2_50", join={"name": "none"})))


@pytest.mark.parametrize(("name", "last"), [("resnetv2_18", "conv2"), ("resnetv2_50", "conv3")])
@pytest.mark.parametrize(("join", "zero_init", "zero"), [("add", "auto", 1), ("none", "auto", 0), ("add", False, 0)])
def test_zero_init_of_the_last_convolution(name, last, join, zero_init, zero):
    model = on_meta(name, join={"name": join}, zero_init=zero_init)
    block = residual_blocks(model)[1][0]
    assert (fills(model)[f"{block}.{last}.weight"].kind == "constant") == zero
    assert fills(model)[f"{block}.conv1.weight"].kind == "normal"


def test_a_fresh_block_is_the_identity():
    block = residual_blocks(build_model({"name": "cifar_preresnet20", "classes": 10, "zero_init": True}))[1][1]
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"join": {"name": "concat"}}, r"model\.join\.name is 'concat', which has no place in a pre-activation ResNet"),
        ({"stem": "deep"}, r"model\.stem is an option of the ResNets of 2015"),
        ({"blurpool": True}, r"model\.blurpool is an option"),
    ],
)
def test_what_has_no_place_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        on_meta("cifar_preresnet20", **change)
