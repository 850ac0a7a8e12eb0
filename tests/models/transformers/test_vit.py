"""Vision transformers against timm's, and against the tables of their papers."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from restrain.errors import UserError
from restrain.models import build_model, residual_blocks
from restrain.models.transformers.positions import sincos_2d
from restrain.models.weights import fit_weights, load_weights

SIDE = 64
MEAN = {"transformer": {"pool": "avg"}}
TIMMS_MEAN = {"class_token": False, "global_pool": "avg", "fc_norm": False}
# name, what our recipe adds, what timm's constructor is told, side in pixels
CASES: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("vit_tiny_patch16_224", {}, {}, SIDE),
    ("vit_small_patch16_224", {}, {}, SIDE),
    ("vit_base_patch16_224", {}, {}, 32),
    ("deit_tiny_patch16_224", {}, {}, SIDE),
    ("deit3_small_patch16_224", {}, {}, SIDE),
    ("vit_medium_patch16_reg4_gap_256", {}, {}, SIDE),
    ("vit_tiny_patch16_224", MEAN, TIMMS_MEAN, SIDE),
    (
        "vit_tiny_patch16_224",
        {"transformer": {"registers": 3, "qk_norm": True}},
        {"reg_tokens": 3, "qk_norm": True},
        48,
    ),
]
LARGE = [(name, {}, {}, 32) for name in ("deit3_base_patch16_224", "vit_large_patch16_224")]
IDS = [f"{name}{'-'.join(['', *more.get('transformer', {})])}" for name, more, _, _ in CASES]


def randomise(model: nn.Module) -> None:
    """Every parameter: fresh LayerScale is next to nothing, fresh norms are ones and zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "token" not in name and "pos" not in name:
                parameter.normal_(std=(1 / parameter[0].numel()) ** 0.5, generator=generator)
            else:
                parameter.uniform_(-1.5, 1.5, generator=generator)


def images(side: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pair(name: str, more: dict[str, Any], theirs_more: dict[str, Any], side: int) -> tuple[nn.Module, nn.Module]:
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=17, img_size=side, **theirs_more)
        ours = build_model({"name": name, "classes": 17, **more}, sides=(side,))
    ours, theirs = (model.double().to_empty(device="cpu") for model in (ours, theirs))
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_logits_are_timms(case):
    ours, theirs = pair(*case)
    with torch.no_grad():
        assert difference(ours.eval()(images(case[3])), theirs.eval()(images(case[3]))) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE, ids=[case[0] for case in LARGE])
def test_logits_of_large_sizes_are_timms(case):
    test_logits_are_timms(case)


@pytest.mark.parametrize("case", [case for case in CASES if "base" not in case[0]])
def test_training_gradients_are_timms(case):
    ours, theirs = pair(*case)
    for model in (ours, theirs):
        model.train()(images(case[3])).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert difference(parameter.grad, expected[name].grad) < 1e-7, name


def swap_norms(model: nn.Module) -> None:
    for _, block in residual_blocks(model):
        block.norm1, block.norm2 = block.norm2, block.norm1


def double_gamma(model: nn.Module) -> None:
    with torch.no_grad():
        model.blocks[3].ls2.gamma.mul_(1.01)


def other_eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def no_scale(model: nn.Module) -> None:
    for _, block in residual_blocks(model):
        with torch.no_grad():
            block.attn.qkv.weight[: block.attn.qkv.in_features] *= 1.001


@pytest.mark.parametrize("mutate", [swap_norms, double_gamma, other_eps, no_scale])
def test_the_same_check_catches_mutations(mutate):
    ours, theirs = pair("deit3_small_patch16_224", {}, {}, 32)
    mutate(ours)
    with torch.no_grad():
        assert difference(ours.eval()(images(32)), theirs.eval()(images(32))) > 1e-7


def test_layerscale_is_the_joins_and_has_timms_name():
    model = build_model({"name": "deit3_small_patch16_224", "classes": 3}, sides=(32,))
    names = [name for name in model.state_dict() if name.startswith("blocks.0.ls")]
    assert names == ["blocks.0.ls1.gamma", "blocks.0.ls2.gamma"]
    assert torch.equal(model.blocks[0].ls1.gamma, torch.full((384,), 1e-4))
    plain = build_model(
        {"name": "deit3_small_patch16_224", "classes": 3, "join": {"name": "add", "scale": "one"}}, sides=(32,)
    )
    assert not any("gamma" in name for name in plain.state_dict())


# ------------------------------------------------------------------------------------------------------ image sizes


def test_another_size_in_evaluation_gets_positions_between_those_learned():
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=17, img_size=SIDE, dynamic_img_size=True).double()
    randomise(theirs)
    ours = build_model({"name": "vit_tiny_patch16_224", "classes": 17}, sides=(SIDE, 96)).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for side in (SIDE, 96):
        with torch.no_grad():
            assert difference(ours.eval()(images(side)), theirs.eval()(images(side))) < 1e-9


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_positions_of_weights_of_another_size_are_resized_and_said(name):
    small, large = (build_model({"name": name, "classes": 5}, seed=side, sides=(side,)) for side in (64, 96))
    theirs = timm.create_model(name, num_classes=5, img_size=96)
    theirs.load_state_dict(large.state_dict())
    prefix = 0 if name.startswith("deit3") else 1
    with pytest.raises(UserError, match=rf"1 of another shape \(pos_embed \[1, {36 + prefix}, "):
        fit_weights(small, large.state_dict(), "some file", interpolate=False)
    fitted = fit_weights(small, theirs.state_dict(), "some file")
    width = small.spec.width
    assert fitted.notices == [f"pos_embed resized from [1, {36 + prefix}, {width}] to [1, {16 + prefix}, {width}]"]
    expected = timm.layers.resample_abs_pos_embed(large.pos_embed.detach(), [4, 4], num_prefix_tokens=prefix)
    torch.testing.assert_close(fitted.tensors["pos_embed"], expected)
    load_weights(small, fitted)
    assert torch.equal(small.head.weight, large.head.weight)


@pytest.mark.parametrize("sides", [(100,), (96, 100)])
def test_a_size_that_the_patches_do_not_divide_is_refused_with_sizes_that_do(sides):
    with pytest.raises(UserError, match=r"100 x 100 pixels.*patches of 16 x 16.*multiples of 16, such as 96 and 112"):
        build_model({"name": "vit_tiny_patch16_224", "classes": 5}, sides=sides)
    model = build_model({"name": "vit_tiny_patch16_224", "classes": 5}, sides=(32,))
    with pytest.raises(UserError, match=r"40 x 48 pixels.*such as 32 and 48"):
        model(torch.zeros(1, 3, 40, 48))


def test_sincos_positions_follow_their_equation():
    table = sincos_2d(3, 5, 16, torch.zeros(1, dtype=torch.float64))
    assert table.shape == (15, 16)
    for row in range(3):
        for column in range(5):
            for k in range(4):
                rate = 10_000 ** -(k / 3)
                place = table[5 * row + column]
                angles = torch.tensor([column * rate, column * rate, row * rate, row * rate], dtype=torch.float64)
                expected = torch.stack([angles[0].sin(), angles[1].cos(), angles[2].sin(), angles[3].cos()])
                torch.testing.assert_close(place[k::4], expected, rtol=1e-12, atol=1e-12)


def test_sincos_positions_are_added_to_the_patches_and_to_no_other_token():
    wish = {"name": "vit_tiny_patch16_224", "classes": 5, "transformer": {"position": "sincos", "registers": 2}}
    model = build_model(wish, sides=(64,)).eval()
    assert "pos_embed" not in model.state_dict()
    x = torch.randn(1, 3, 64, 80)
    tokens = model.embed(x)
    assert torch.equal(tokens[:, :3], torch.cat((model.cls_token, model.reg_token), 1))
    expected = model.patch_embed(x).flatten(2).transpose(1, 2) + sincos_2d(4, 5, 192, tokens)
    torch.testing.assert_close(tokens[:, 3:], expected)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_small_images_take_small_patches(pool):
    shape = {"depth": 2, "width": 64, "heads": 2, "patch": 4}
    wish = {"name": "vit", "classes": 10, "shape": shape, "transformer": {"pool": pool, "position": "learned"}}
    model = build_model(wish, sides=(32,))
    assert model.pos_embed.shape == (1, 64 + (pool == "token"), 64)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(UserError, match=r"model\.shape\.patch is missing"):
        build_model({"name": "vit", "classes": 10, "shape": {"depth": 2, "width": 64}})


# ----------------------------------------------------------------------------------------------- counts of the papers


@pytest.mark.parametrize(
    ("name", "millions", "multiply_adds"),
    [
        ("deit_tiny_patch16_224", 5.717416, 1.254),  # Touvron et al. 2020, table 1: 5 M, and 1.3 G in its page
        ("deit_small_patch16_224", 22.050664, 4.608),  # 22 M, 4.6 G
        ("deit_base_patch16_224", 86.567656, 17.583),  # 86 M, 17.6 G
        ("vit_large_patch16_224", 304.326632, 61.6),  # Dosovitskiy et al. 2020, table 1: 307 M with 21k classes' head
        ("vit_huge_patch14_224", 632.0458, 167.4),  # 632 M
        ("deit3_small_patch16_224", 22.059496, 4.608),  # Touvron et al. 2022's page: 22.0 M, 4.6 G
        ("deit3_base_patch16_224", 86.585320, 17.583),  # 86.6 M, 17.5 G
        ("deit3_large_patch16_224", 304.374760, 61.6),  # 304.4 M, 61.6 G
        ("deit3_huge_patch14_224", 632.126440, 167.4),  # 632.1 M, 167.4 G
    ],
)
def test_parameters_and_multiply_adds_of_the_papers(name, millions, multiply_adds):
    with torch.device("meta"):
        model = build_model({"name": name, "classes": 1000})
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=1e-4)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(multiply_adds, rel=2e-3)
