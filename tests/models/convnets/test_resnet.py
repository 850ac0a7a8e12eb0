"""ResNets against timm, and against the tables of He et al. 2015 (arXiv:1512.03385)."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from restrain.errors import UserError
from restrain.models import build_model, freeze, residual_blocks
from restrain.models.convnets.resnet import Subsample
from tests.models.parity import check_training, difference, randomise

IMAGENET = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def meta_model(name: str, classes: int = 1000, join: str = "add") -> nn.Module:
    with torch.device("meta"):
        return build_model({"name": name, "classes": classes, "join": {"name": join}})


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    theirs = timm.create_model(name, num_classes=17).double()
    randomise(theirs)
    ours = meta_model(name, classes=17).double().to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return ours, theirs, x


def logit_difference(name: str, mutate=lambda model: None) -> float:
    ours, theirs, x = pair(name)
    mutate(ours)
    with torch.no_grad():
        return difference(ours.eval()(x), theirs.eval()(x))


def stride_to_conv1(model: nn.Module) -> None:
    """The placement of the paper's own code, in which a bottleneck's first 1x1 convolution strides."""
    for _, block in residual_blocks(model):
        if hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def stride_to_conv2(model: nn.Module) -> None:
    for _, block in residual_blocks(model):
        block.conv1.stride, block.conv2.stride = (1, 1), block.conv1.stride


@pytest.mark.parametrize("name", IMAGENET)
def test_logits_are_timms(name):
    assert logit_difference(name) < 1e-9


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_same_check_catches_a_moved_stride(name):
    assert logit_difference(name, stride_to_conv2 if name == "resnet18" else stride_to_conv1) > 1e-3


@pytest.mark.parametrize("name", [*IMAGENET[:4], pytest.param("resnet152", marks=pytest.mark.slow)])
def test_training_gradients_and_statistics_are_timms(name):
    check_training(*pair(name))


def multiply_adds(model: nn.Module, pixels: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, pixels, pixels, device="meta"))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("name", "parameters", "paper", "in_conv1", "in_conv2"),
    [
        ("resnet18", 11_689_512, 1.8, 1.814, 1.814),
        ("resnet34", 21_797_672, 3.6, 3.664, 3.664),
        ("resnet50", 25_557_032, 3.8, 3.858, 4.089),
        ("resnet101", 44_549_160, 7.6, 7.570, 7.801),
        ("resnet152", 60_192_808, 11.3, 11.282, 11.514),
    ],
)
def test_parameters_and_multiply_adds_of_table_1(name, parameters, paper, in_conv1, in_conv2):
    """The table (10^9, one digit, 3.664 and 3.858 cut and not rounded) is for stride in conv1; ours is v1.5."""
    model = meta_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert multiply_adds(model, 224) / 1e9 == pytest.approx(in_conv2, abs=5e-4)
    stride_to_conv1(model)
    counted = multiply_adds(model, 224) / 1e9
    assert counted == pytest.approx(in_conv1, abs=5e-4)
    assert abs(counted - paper) < 0.07


@pytest.mark.parametrize(
    ("layers", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
@pytest.mark.parametrize("join", ["add", "none"])
def test_parameters_of_table_6(layers, millions, join):
    """Option A adds no parameters, so the plain net has as many."""
    model = meta_model(f"cifar_resnet{layers}", classes=10, join=join)
    counted = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert round(counted, 1 if millions > 1 else 2) == millions
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) + 1 == layers


def test_option_a_subsamples_and_appends_zeros():
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    y = Subsample(3, 8, 2)(x)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert y.shape == (2, 8, 3, 3)
    assert not y[:, 3:].any()
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "resnet50"])
def test_a_plain_net_differs_in_its_shortcuts_alone(name):
    residual, plain = meta_model(name), meta_model(name, join="none")
    assert all(block.downsample is None for _, block in residual_blocks(plain))
    shortcuts = {key for key in residual.state_dict() if ".downsample." in key}
    assert set(residual.state_dict()) - shortcuts == set(plain.state_dict())
    built = build_model({"name": name, "classes": 5, "join": {"name": "none"}})
    assert built(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_plain_block_is_its_branch():
    block = residual_blocks(build_model({"name": "cifar_resnet20", "classes": 10, "join": {"name": "none"}}))[0][1]
    x = torch.randn(2, 16, 8, 8)
    expected = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))).relu()
    assert torch.equal(block(x), expected)


def test_a_fresh_residual_block_is_the_identity_behind_relu():
    block = residual_blocks(build_model({"name": "resnet18", "classes": 10}))[0][1]
    x = torch.rand(2, 64, 8, 8)
    assert torch.equal(block(x), x)


# ---------------------------------------------------------------------------------------------------- build_model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet51"}, r"model\.name is 'resnet51'.*Did you mean 'resnet"),
        ({"clases": 3}, r"model\.clases does not exist.*Did you mean 'classes'"),
        ({"join": {"name": "adds"}}, r"model\.join\.name is 'adds'.*Did you mean 'add'"),
        ({"join": {"name": "none"}, "drop_path": {"rate": 0.1}}, r"model\.drop_path\.rate is 0\.1, but"),
        ({"drop_path": {"rate": 0.1, "mode": "rows"}}, r"model\.drop_path\.mode is .rows."),
        ({"join": {"name": "concat"}}, r"model\.join\.name is .concat., which has no place in a ResNet"),
        ({"freeze": ["blocks:1"]}, r"model\.freeze has 'blocks:1'"),
        ({"freeze": ["block:7-9"]}, r"blocks are 0-8"),
        ({"freeze": ["block:3-1"]}, r"blocks are 0-8"),
    ],
)
def test_bad_mappings_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        build_model({"name": "cifar_resnet20", "classes": 10} | change)


def test_classes_are_demanded():
    with pytest.raises(UserError, match=r"model\.classes is missing"):
        build_model({"name": "resnet18"})


def test_frozen_parts_do_not_move():
    mapping = {"name": "cifar_resnet20", "classes": 10, "in_chans": 1, "freeze": ["stem", "block:0-3", "head"]}
    model = build_model(mapping).train()
    frozen = ["conv1.", "bn1.", "layer1.", "layer2.0.", "fc."]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == any(name.startswith(part) for part in frozen), name
    moved = {key.rpartition(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {
        f"layer{stage}.{index}.bn{norm}" for stage, index in [(2, 1), (2, 2), (3, 0), (3, 1), (3, 2)] for norm in (1, 2)
    }


def test_one_block_can_be_frozen():
    model = build_model({"name": "cifar_resnet20", "classes": 10})
    freeze(model, ["block:4"])
    assert {name.rsplit(".", 2)[0] for name, p in model.named_parameters() if not p.requires_grad} == {"layer2.1"}


# --------------------------------------------------------------------------------------------- ResNet-D and blur pool


def d_pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    theirs = timm.create_model(f"{name}d", num_classes=17).double()
    randomise(theirs)
    ours = build_model({"name": name, "classes": 17, "stem": "deep", "downsample": "avgpool"}).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs, torch.randn(2, 3, 72, 72, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_d_is_timms(name):
    ours, theirs, x = d_pair(name)
    with torch.no_grad():
        assert difference(ours.eval()(x), theirs.eval()(x)) < 1e-9
    for model in (ours, theirs):
        model.train()(x).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for path, parameter in ours.named_parameters():
        assert difference(parameter.grad, expected[path].grad) < 1e-7, path
    for path, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(path), buffer, rtol=1e-9, atol=1e-9)


def test_the_same_check_catches_a_strided_shortcut():
    ours, theirs, x = d_pair("resnet18")
    ours.layer2[0].downsample[0], ours.layer2[0].downsample[1].stride = nn.Identity(), (2, 2)
    with torch.no_grad():
        assert difference(ours.eval()(x), theirs.eval()(x)) > 1e-3


class Blurred(nn.Module):
    """An independent form: a blur of each channel on its own, then the convolution it stands before."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        rows, chans, height, width = x.shape
        kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=x.dtype).view(1, 1, 3, 3) / 16
        blurred = nn.functional.conv2d(x.reshape(rows * chans, 1, height, width), kernel, padding=(1, 1))
        return self.conv(blurred.reshape(x.shape))


@pytest.mark.parametrize(("name", "blurs"), [("resnet18", 6), ("resnet50", 6)])
def test_blur_stands_before_each_strided_convolution_of_16_channels(name, blurs):
    ours, theirs, x = pair(name)
    ours = build_model({"name": name, "classes": 17, "blurpool": True}).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    replaced = 0
    for path, conv in list(theirs.named_modules()):
        if isinstance(conv, nn.Conv2d) and max(conv.stride) > 1 and conv.in_channels >= 16:
            parent, _, last = path.rpartition(".")
            setattr(theirs.get_submodule(parent), last, Blurred(conv))
            replaced += 1
    assert replaced == blurs
    with torch.no_grad():
        assert difference(ours.eval()(x), theirs.eval()(x)) < 1e-9
        assert difference(ours(x), pair(name)[1].eval()(x)) > 1e-3


@pytest.mark.parametrize("option", [{"stem": "deep"}, {"downsample": "avgpool"}, {"blurpool": True}])
def test_cifar_sizes_have_no_such_options(option):
    with pytest.raises(UserError, match=rf"model\.{next(iter(option))} is an option of the ImageNet sizes"):
        build_model({"name": "cifar_resnet20", "classes": 10, **option})
