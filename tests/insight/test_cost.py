"""Multiply-adds against the published ones, and a model that is not touched by being counted."""

import pytest
import timm
import torch
import torchvision

from restrain.errors import UserError
from restrain.insight.cost import forward_macs
from restrain.models import build_model, named_joins

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
