"""Multiply-adds against the published ones, and a model that is not touched by being counted."""

import pytest
import timm
import torch
import torchvision

from restrain.errors import UserError
from restrain.insight.cost import branch_macs, forward_macs
from restrain.models import build_model, named_joins, residual_blocks

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
TIMM = {
    "resnext50_32x4d": "resnext50_32x4d",
    "convnext_tiny": "convnext_tiny",
    "mobilenetv3_large_100": "mobilenet_v3_large",
}


def published(name):
    """Multiply-adds in units of 1e9 at 224 pixels, from torchvision's tables of weights."""
    return torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta["_ops"]


@pytest.mark.parametrize("name", RESNETS)
def test_published_resnets(name):
    with torch.device("meta"):
        model = build_model({"name": name, "classes": 1000})
    assert forward_macs(model, 3, 224, 224) / 1e9 == pytest.approx(published(name), abs=0.001)


@pytest.mark.parametrize("name", TIMM)
def test_published_timm(name):
    """Grouped and depth-wise convolutions, and linear layers over channels."""
    with torch.device("meta"):
        model = timm.create_model(name)
    assert forward_macs(model, 3, 224, 224) / 1e9 == pytest.approx(published(TIMM[name]), abs=0.005)


def test_attention_by_hand(monkeypatch):
    with torch.device("meta"):
        fused, plain = (timm.create_model("vit_small_patch16_224") for _ in range(2))
    tokens, width, depth = 14 * 14 + 1, 384, 12
    patches = 14 * 14 * 16 * 16 * 3 * width
    linear = tokens * width * width * (3 + 1 + 4 + 4)
    products = 2 * tokens * tokens * width  # q k^T and the weighted sum of v
    expected = patches + depth * (linear + products) + width * 1000
    for block in fused.blocks:
        block.attn.fused_attn = True
    for block in plain.blocks:
        block.attn.fused_attn = False
    assert forward_macs(fused, 3, 224, 224) == expected
    assert forward_macs(plain, 3, 224, 224) == expected
    assert expected / 1e9 == pytest.approx(4.6, abs=0.05)  # Touvron et al. 2021 (DeiT, arXiv:2012.12877), table 5


def test_the_model_stays_as_it_was():
    model = build_model({"name": "cifar_resnet20", "classes": 10, "drop_path": {"rate": 0.3}}).train()
    seen = []
    model.register_forward_hook(lambda *_: seen.append("hook"))
    for _, join in named_joins(model):
        join.observers.append(lambda *_: seen.append("observer"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    assert forward_macs(model, 3, 32, 32) / 1e6 == pytest.approx(40.6, abs=0.4)
    assert not seen
    assert all(module.training for module in model.modules())
    assert all(join.observers for _, join in named_joins(model))
    assert before.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_size_counts():
    model = build_model({"name": "resnet18", "classes": 10, "in_chans": 1})
    assert forward_macs(model, 1, 224, 224) < forward_macs(model, 1, 256, 256) < forward_macs(model, 1, 256, 288)
    with pytest.raises(UserError, match=r"does not take images of 3 x 224 x 224.*model\.in_chans"):
        forward_macs(model, 3, 224, 224)


def test_the_work_of_branches_leaves_out_what_a_skipped_block_computes():
    """Of ResNet-18 (He et al. 2015, table 1): two 3x3 convolutions a block; the projections stay."""
    with torch.device("meta"):
        model = build_model({"name": "resnet18", "classes": 10})
    work = branch_macs(model, torch.empty(1, 3, 224, 224))
    assert list(work) == [name for name, _ in residual_blocks(model)]
    inner = 9 * 64 * 64 * 56 * 56  # every stage halves the sides and doubles the channels
    assert work["layer1.0"] == work["layer1.1"] == work["layer4.1"] == 2 * inner
    assert work["layer2.0"] == work["layer4.0"] == inner // 2 + inner  # the first one strides
    projections = 3 * (64 * 128 * 28 * 28)
    stem, head = 3 * 64 * 49 * 112 * 112, 512 * 10
    assert sum(work.values()) + projections + stem + head == forward_macs(model, 3, 224, 224)
    assert not any(block.skipped for _, block in residual_blocks(model))


@pytest.mark.parametrize("join", ["add", "gate", "shortcut_gate", "conv1x1", "scale"])
def test_what_a_skipped_block_still_computes_is_no_saving(join: str) -> None:
    """Its projection, and the join's own gate or convolution."""
    model = build_model({"name": "cifar_resnet20", "classes": 10, "join": {"name": join}})
    whole = forward_macs(model, 3, 32, 32)
    work = branch_macs(model, torch.empty(1, 3, 32, 32))
    for name, block in residual_blocks(model):
        block.block_forward = block.skip_forward  # an attribute hides the method
        assert forward_macs(model, 3, 32, 32) == whole - work[name], name
        del block.block_forward
