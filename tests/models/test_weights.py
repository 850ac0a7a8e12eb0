"""Weights from elsewhere: everything fits, or nothing is touched and the paragraph says what does not."""

import re

import pytest
import timm
import torch

from restrain.errors import UserError
from restrain.models import build_model
from restrain.models.foreign.zoo import timm_name
from restrain.models.weights import fit_weights, heads_of, load_weights


def vit(side: int, **more):
    return build_model({"name": "timm/vit_tiny_patch16_224", "classes": 5, **more}, sides=(side,))


def test_timms_weights_load_strictly_into_our_resnets():
    theirs, ours = timm.create_model("resnet18", num_classes=5), build_model({"name": "resnet18", "classes": 5})
    fitted = fit_weights(ours, theirs.state_dict(), "some file")
    assert fitted.notices == []
    load_weights(ours, fitted)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_another_number_of_classes_wants_a_reset_head(name):
    model, other = build_model({"name": name, "classes": 5}), build_model({"name": name, "classes": 7}, seed=1)
    with pytest.raises(UserError, match=r"2 of another shape \(fc\.weight \[7, 512\] for \[5, 512\].*reset=\[head\]"):
        fit_weights(model, other.state_dict(), "some file")
    fresh = model.fc.weight.clone()
    fitted = fit_weights(model, other.state_dict(), "some file", reset_head=True)
    load_weights(model, fitted)
    assert fitted.notices == ["head (fc.bias, fc.weight) keeps its fresh weights"]
    assert torch.equal(model.fc.weight, fresh)
    assert torch.equal(model.conv1.weight, other.conv1.weight)


def test_weights_of_another_architecture_are_named_first_three_and_count():
    model, other = build_model({"name": "resnet18", "classes": 5}), build_model({"name": "resnet50", "classes": 5})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        fit_weights(model, other.state_dict(), "resnet50.safetensors")
    said = str(caught.value)
    unexpected = [name for name in other.state_dict() if name not in before]
    assert f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])}, ...)" in said
    with pytest.raises(UserError, match=re.escape("missing (layer1.0.conv3.weight, layer1.0.bn3.weight, ")):
        fit_weights(other, model.state_dict(), "resnet18.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_position_embeddings_are_resized_and_said():
    small, large = vit(64), vit(96)
    large = large.double()
    with torch.no_grad():
        large.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"1 of another shape \(pos_embed \[1, 37, 192\] for \[1, 17, 192\]"):
        fit_weights(small, large.state_dict(), "some file", interpolate=False)
    fitted = fit_weights(small, large.state_dict(), "some file")
    assert fitted.notices == ["pos_embed resized from [1, 37, 192] to [1, 17, 192]"]
    expected = timm.layers.resample_abs_pos_embed(large.pos_embed.detach(), [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(fitted.tensors["pos_embed"], expected)
    load_weights(small, fitted)
    assert small.pos_embed.dtype == torch.float32


def test_a_model_on_the_meta_device_can_be_asked():
    with torch.device("meta"):
        model = vit(64)
    assert len(fit_weights(model, vit(96).state_dict(), "some file").notices) == 1


def test_counters_may_be_missing():
    model = build_model({"name": "resnet18", "classes": 5})
    tensors = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_weights(model, fit_weights(model, tensors, "some file"))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet50", {}, "resnet50"),
        ("resnet50", {"stem": "deep", "downsample": "avgpool"}, "resnet50d"),
        ("resnet50", {"stem": "deep"}, None),
        ("resnetv2_50", {}, "resnetv2_50"),
        ("resnetv2_200", {}, None),
        ("densenet121", {}, "densenet121"),
        ("vgg16_bn", {}, "vgg16_bn"),
        ("alexnet", {}, None),
        ("cifar_resnet20", {}, None),
        ("timm/convnext_tiny.fb_in1k", {}, "convnext_tiny.fb_in1k"),
    ],
)
def test_which_of_our_networks_timm_has(name, options, expected):
    assert timm_name({"name": name, "stem": "basic", "downsample": "conv", "blurpool": False} | options) == expected


@pytest.mark.parametrize(
    ("name", "head"), [("resnetv2_18", "head.fc"), ("densenet121", "classifier"), ("vgg16", "head.fc")]
)
def test_the_head_of_each_family_is_known(name, head):
    with torch.device("meta"):
        assert heads_of(build_model({"name": name, "classes": 5})) == [head]
