"""DenseNets against timm, and against section 4.2 of Huang et al. 2016 (arXiv:1608.06993)."""

import pytest
import timm
import torch
from torch import nn

from restrain.errors import UserError
from restrain.models import build_model, residual_blocks
from tests.models.blockwise import check_skip_path, recording, training_model
from tests.models.parity import check_training, images, like, logit_difference, on_meta, randomise

CONCAT = {"name": "concat"}
TIMM = ["densenet121", "densenet169", pytest.param("densenet201", marks=pytest.mark.slow)]
SMALL = ["cifar_densenet40_k12", "cifar_densenetbc100_k12"]


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    theirs = timm.create_model(name, num_classes=17).double()
    randomise(theirs)
    return like(theirs, name, join=CONCAT), theirs


@pytest.mark.parametrize("name", TIMM)
def test_logits_are_timms(name):
    assert logit_difference(*pair(name), images(64)) < 1e-9


@pytest.mark.parametrize(
    "name", [TIMM[0], *(pytest.param(one, marks=pytest.mark.slow) for one in ("densenet169", "densenet201"))]
)
def test_training_gradients_and_statistics_are_timms(name):
    check_training(*pair(name), images(64))


def pooled_before_the_convolution_strides(model: nn.Module) -> None:
    model.features.conv0.stride, model.features.pool0.stride = (1, 1), 4


def appended_in_front(model: nn.Module) -> None:
    for _, block in residual_blocks(model):
        block.join.joined = lambda x, branch: torch.cat((branch, x), 1)


@pytest.mark.parametrize("mutate", [pooled_before_the_convolution_strides, appended_in_front])
def test_the_same_check_catches(mutate):
    ours, theirs = pair("densenet121")
    mutate(ours)
    assert logit_difference(ours, theirs, images(64)) > 1e-3


@pytest.mark.parametrize(
    ("name", "layers", "first"),
    [
        ("cifar_densenet40_k12", 40, 16),
        ("cifar_densenet100_k12", 100, 16),
        ("cifar_densenetbc100_k12", 100, 24),
        ("cifar_densenetbc190_k40", 190, 80),
    ],
)
def test_cifar_sizes_have_as_many_layers_as_they_say(name, layers, first):
    model = on_meta(name, join=CONCAT)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) + 1 == layers
    assert model.features.conv0.out_channels == first


def test_each_layer_is_a_block_and_each_transition_is_none():
    model = on_meta("cifar_densenetbc100_k12", join=CONCAT)
    names = [name for name, _ in residual_blocks(model)]
    assert names[:2] == ["features.denseblock1.denselayer1", "features.denseblock1.denselayer2"]
    assert len(names) == 3 * 16


# --------------------------------------------------------------------------------------------------- join and drop path


@pytest.mark.parametrize("name", SMALL)
def test_without_branches_the_appended_channels_are_zero(name):
    model, x = training_model(name, join=CONCAT), images(16, rows=4)
    dropped = check_skip_path(model, x)
    stream = x
    for module in model.features:
        if isinstance(module, nn.Sequential):
            stream = nn.functional.pad(stream, (0, 0, 0, 0, 0, 12 * len(module)))
        else:
            stream = module(stream)
    assert torch.equal(dropped, model.classifier(torch.relu(stream).mean((2, 3))))


@pytest.mark.parametrize("name", SMALL)
def test_recorded_branches_rebuild_each_dense_block(name):
    model, x = training_model(name, join=CONCAT).eval(), images(16)
    with recording(model) as seen:
        model(x)
    depth = len(model.features.denseblock1)
    for first in range(0, len(seen), depth):
        joins = seen[first : first + depth]
        assert torch.equal(joins[-1][2], torch.cat([joins[0][0], *(branch for _, branch, _ in joins)], 1))


def test_a_dropped_row_reaches_neither_its_branch_nor_another_rows():
    model = training_model("cifar_densenet40_k12", join=CONCAT)
    join = residual_blocks(model)[0][1].join
    join.factor = torch.tensor([0.0, 2.0, 0.0, 2.0])
    stream, branch = torch.randn(4, 16, 3, 3).double(), torch.randn(4, 12, 3, 3).double()
    y = join(stream, branch)
    assert torch.equal(y[:, :16], stream)
    assert torch.equal(y[1::2, 16:], 2 * branch[1::2])
    assert not y[::2, 16:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"join": {"name": "add"}},
            r"join\.name is 'add', but densenet121 appends each branch.*model\.join\.name=concat",
        ),
        ({"join": {"name": "none"}}, r"model\.join\.name is 'none', but densenet121 appends"),
        ({"join": CONCAT, "zero_init": True}, r"model\.zero_init is true.* would never learn"),
        ({"join": CONCAT, "downsample": "avgpool"}, r"model\.downsample is an option of ResNets"),
    ],
)
def test_what_has_no_place_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        on_meta("densenet121", **change)


def test_a_layer_that_starts_at_zero_would_never_learn():
    """Why zero_init is refused: no gradient comes back through BatchNorm and ReLU at channels that are zero."""
    model = build_model({"name": "cifar_densenet40_k12", "classes": 10, "join": CONCAT}).train()
    with torch.no_grad():
        for _, block in residual_blocks(model):
            block.conv1.weight.zero_()
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    assert not any(block.conv1.weight.grad.any() for _, block in residual_blocks(model))


@pytest.mark.parametrize(("name", "least"), [("densenet121", 29), ("cifar_densenet40_k12", 4)])
def test_images_of_which_nothing_is_left_are_refused(name, least):
    section = {"name": name, "classes": 10}
    with torch.device("meta"):
        model = build_model(section, sides=(least,)).eval()
        assert model(torch.empty(1, 3, least, least)).shape == (1, 10)
        with pytest.raises(RuntimeError):
            model(torch.empty(1, 3, least - 1, least - 1))
        with pytest.raises(UserError, match=rf"{name} takes images of {least} pixels or more"):
            build_model(section, sides=(least - 1,))
