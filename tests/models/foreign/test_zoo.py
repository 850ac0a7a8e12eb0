"""timm's models through the block contract. benchmarks/zoo.py holds one of each family to the same step."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath as TimmDropPath
from torch import nn

from restrain.errors import UserError
from restrain.models import (
    GroupedBatchNorm2d,
    StagedStatistics,
    build_model,
    named_joins,
    residual_blocks,
    set_factors,
    set_group,
)
from restrain.models.foreign.keyed import KeyedDraws
from restrain.models.norm import grouped_norms
from restrain.optim.ema import Ema
from restrain.parallel.blocks import apply_compile, apply_remat

ROOT = Path(__file__).parents[3]


def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("zoo_benchmark", ROOT / "benchmarks" / "zoo.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["zoo_benchmark"] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.pop(0)


ZOO = benchmark()
FAST = [
    "resnet18",
    "regnetx_002",
    "efficientnet_b0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "levit_128s",
    "mobilevit_xxs",
    "swin_tiny_patch4_window7_224",
]


def build(name: str, side: int = 64, seed: int = 0, **more) -> nn.Module:
    return build_model({"name": f"timm/{name}", "classes": 5, **more}, seed=seed, sides=(side,))


# --------------------------------------------------------------------------------------------- one step against timm's


@pytest.mark.parametrize("name", FAST)
def test_one_step_is_timms(name):
    row = ZOO.examine(name, ZOO.MODELS[name])
    assert row.refused is None
    assert row.blocks > 0
    assert row.step_difference <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ZOO.MODELS if name not in FAST])
def test_one_step_is_timms_in_every_family(name):
    row = ZOO.examine(name, ZOO.MODELS[name])
    assert row.refused is None
    assert row.step_difference <= 1e-6
    assert row.blocks > 0 or name.startswith(("vgg", "inception_v"))


def test_the_comparison_sees_a_stride_in_the_wrong_place():
    ours, theirs = build("resnet18"), timm.create_model("resnet18", num_classes=5)
    ours.layer2[0].conv1.stride, ours.layer2[0].conv2.stride = (1, 1), (2, 2)
    with pytest.raises(AssertionError):
        assert ZOO.step_difference(ours, theirs, 64) <= 1e-6


def test_the_committed_table_is_of_these_models():
    table = json.loads((ROOT / "benchmarks" / "results" / "zoo.json").read_text())["results"]["models"]
    assert [row["name"] for row in table] == list(ZOO.MODELS)
    kept = [row for row in table if row["refused"] is None]
    assert len(kept) >= 40
    assert all(row["step_difference"] <= 1e-6 for row in kept)


# ------------------------------------------------------------------------------------------------------ initial weights


@pytest.fixture
def no_generators(monkeypatch):
    """Generators that cannot be read; torch's is compared, since its C++ side cannot be patched."""

    def refuse(*args, **kwargs):
        raise AssertionError("a process-wide generator was read")

    for name in ("random", "uniform", "randint", "choice", "shuffle", "gauss"):
        monkeypatch.setattr(random, name, refuse)
    for name in ("rand", "randn", "random", "uniform", "normal", "randint", "choice", "beta"):
        monkeypatch.setattr(np.random, name, refuse)
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", FAST)
def test_weights_are_a_function_of_the_seed_and_no_generator_is_read(name, no_generators):
    side = ZOO.MODELS[name]
    first, again, other = build(name, side, 3), build(name, side, 3), build(name, side, 4)
    pairs = list(zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    set_group(first, 2)
    set_factors(first, torch.ones(len(named_joins(first)), 2))
    first.train()(torch.ones(2, 3, side, side)).sum().backward()


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0", "swin_tiny_patch4_window7_224"]
)
def test_distributions_are_timms(name):
    side = ZOO.MODELS[name]
    ours = build(name, side)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = ZOO.timms(name, side)
    expected = dict(theirs.named_parameters())
    for path, parameter in ours.named_parameters():
        if parameter.numel() < 4000 or "head" in path or "classifier" in path or path.startswith("fc"):
            continue
        mean, std = expected[path].mean().item(), expected[path].std().item()
        assert parameter.std().item() == pytest.approx(std, rel=0.1, abs=1e-9), path
        assert parameter.mean().item() == pytest.approx(mean, abs=max(0.1 * std, 1e-9)), path


FILLS = [-0.8261489, -0.8643014, 1.097865, 4.7456989, 0.7278313, 0.5079432, -1.1746773, -0.0532225]


def test_values_of_a_fill_are_frozen():
    with KeyedDraws(5):
        found = [torch.empty(2).uniform_(-1, 1), torch.empty(2).normal_(1.0, 2.0), torch.rand(2), torch.randn(2)]
    with KeyedDraws(5):
        again = torch.empty(2, 1).uniform_(-1, 1).flatten()
    assert torch.equal(found[0], again)
    assert torch.cat(found).tolist() == pytest.approx(FILLS, abs=1e-6)


def test_a_draw_without_a_keyed_form_is_an_error():
    with pytest.raises(NotImplementedError, match="randperm"), KeyedDraws(0):
        torch.randperm(3)


# ----------------------------------------------------------------------------------------------------------- drop paths


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilevit_xxs"])
def test_keyed_drop_paths_are_timms_given_the_same_draws(name):
    """timm's DropPath modules are made to multiply by the factors that ours were given."""
    side = 64
    ours = build(name, side, drop_path={"rate": 0.5}).double().train()
    theirs = timm.create_model(name, num_classes=5, drop_path_rate=0.5, drop_rate=0.0, **_size(name, side)).double()
    ZOO.unsettle(theirs)
    ours.load_state_dict(theirs.state_dict())
    joins = dict(named_joins(ours))
    timms = {path: module for path, module in theirs.named_modules() if isinstance(module, TimmDropPath)}
    assert set(joins) == set(timms)
    assert [join.rate for join in joins.values()] == [timms[path].drop_prob for path in joins]
    factors = torch.randint(0, 2, (len(joins), 4), generator=torch.Generator().manual_seed(0)).double() * 2
    set_factors(ours, factors)
    for path, factor in zip(joins, factors, strict=True):
        timms[path].forward = _fixed(factor, joins[path].rate > 0)
    x = torch.randn(4, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs.train()(x), rtol=1e-10, atol=1e-10)
    whole = torch.ones_like(factors)
    set_factors(ours, whole)
    assert not torch.allclose(ours(x), theirs(x))


def _size(name: str, side: int) -> dict[str, int]:
    return {"img_size": side} if name.startswith("vit") else {}


def _fixed(factor, drops):
    def forward(x):
        if not drops:
            return x
        rows = factor.repeat_interleave(x.shape[0] // factor.shape[0])
        return x * rows.view(-1, *[1] * (x.ndim - 1))

    return forward


def test_blocks_that_add_nothing_have_no_drop_path():
    """The MobileNets' last convolutions own one that they never call."""
    with torch.device("meta"):
        model = build("mobilenetv3_small_050", drop_path={"rate": 0.2})
    theirs = timm.create_model("mobilenetv3_small_050", drop_path_rate=0.2)
    owned = {path for path, module in theirs.named_modules() if isinstance(module, TimmDropPath)}
    called = {path for path in owned if theirs.get_submodule(path.rpartition(".")[0]).has_skip}
    assert called < owned
    assert {path for path, join in named_joins(model) if join.drops} == called


def test_branches_that_share_a_drop_path_are_said():
    with torch.device("meta"):
        model = build("mixer_s32_224", drop_path={"rate": 0.2})
        plain = build("mixer_s32_224")
    assert "8 of its drop paths serve several branches of a block" in model.notices[0]
    assert plain.notices == []


def test_rates_are_timms_linear_rule():
    model = build("vit_tiny_patch16_224", drop_path={"rate": 0.11})
    rates = [join.rate for _, join in named_joins(model)]
    assert rates == pytest.approx([0.01 * block for block in range(1, 12) for _ in range(2)])


@pytest.mark.parametrize(("name", "spread"), [("levit_128s", 16), ("mobilevit_xxs", 4), ("efficientvit_m0", 4)])
def test_rows_of_an_image_stand_together_where_a_model_folds_them_into_the_batch(name, spread):
    """Changing the second image changes no row of the first in any norm or drop path that sees more rows."""
    side = 224 if name == "efficientvit_m0" else 64
    model = build(name, side, drop_path={"rate": 0.1} if name != "efficientvit_m0" else {}).eval()
    spread_modules = [m for m in model.modules() if getattr(m, "spread", 1) > 1]
    assert max(m.spread for m in spread_modules) == spread
    seen: dict[int, list[torch.Tensor]] = {}
    for module in spread_modules:
        module.register_forward_pre_hook(lambda m, args: seen.setdefault(id(m), []).append(args[0].clone()))
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(x)
        x[1] += 1.0
        model(x)
    for module in spread_modules:
        before, after = seen[id(module)]
        assert torch.equal(before[: module.spread], after[: module.spread])
        assert not torch.equal(before[module.spread :], after[module.spread :])


# ----------------------------------------------------------------------------------------------------- passes and state


def test_blocks_stand_in_depth_order_with_names_of_the_state_dict():
    for name, names in {
        "resnet18": [f"layer{s}.{i}" for s in range(1, 5) for i in range(2)],
        "vit_tiny_patch16_224": [f"blocks.{i}" for i in range(12)],
    }.items():
        model = build(name)
        assert [path for path, _ in residual_blocks(model)] == names
        assert list(model.state_dict()) == list(timm.create_model(name, **_size(name, 64)).state_dict())


@pytest.mark.parametrize("name", ["resnet18", "xcit_nano_12_p16_224", "pvt_v2_b0", "cait_xxs24_224"])
def test_remat_changes_nothing_but_memory(name):
    """Blocks with more than one argument too: XCiT's and PVT's take the grid, CaiT's a class token."""
    plain = build(name, drop_path={"rate": 0.3}).double()
    ZOO.unsettle(plain)
    remat = copy.deepcopy(plain)
    apply_remat(remat)
    assert list(remat.state_dict()) == list(plain.state_dict())
    kept = []
    for model in (plain, remat):
        staged = StagedStatistics(model)
        set_factors(model, torch.ones(len(named_joins(model)), 4))
        x = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.train()(x).square().sum()
        loss.backward()
        kept.append(saved)
        staged.accumulate()
        staged.commit(1)
    assert kept[1] < 0.7 * kept[0]
    for (path, a), (_, b) in zip(plain.named_parameters(), remat.named_parameters(), strict=True):
        if a.grad is None:
            assert b.grad is None
            continue
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=path)
    for a, b in zip(plain.buffers(), remat.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_compile_one_by_one():
    model = build("vit_tiny_patch16_224").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        apply_compile(model, backend="eager")
        torch.testing.assert_close(model(x), expected)


def test_a_model_without_residual_blocks_says_so():
    with torch.device("meta"):  # of its 129 M parameters none is needed
        model = build("vgg11_bn", 32)
    assert residual_blocks(model) == []
    with pytest.raises(UserError, match="no residual blocks"):
        apply_remat(model)
    with pytest.raises(UserError, match="no residual blocks"):
        build("vgg11_bn", 32, freeze=["block:0"])


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_groups_are_normalised_as_if_each_were_alone(name):
    model = build(name).double()
    ZOO.unsettle(model)
    assert {type(norm).__name__ for _, norm in grouped_norms(model)} <= {"GroupedBatchNorm2d", "GroupedBatchNormAct2d"}
    x = torch.randn(8, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    set_group(model, 4)
    together = model.train()(x)
    apart = torch.cat([model(part) for part in x.split(4)])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)
    set_group(model, None)
    assert not torch.allclose(model(x), together)


def test_groups_of_tokens_belong_to_images():
    model = build("levit_128s").double()
    ZOO.unsettle(model)
    x = torch.randn(8, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    set_group(model, 4)
    together = model.train()(x)
    torch.testing.assert_close(together, torch.cat([model(part) for part in x.split(4)]), rtol=1e-9, atol=1e-9)


def test_evaluation_is_timms():
    ours, theirs = build("efficientnet_b0").double(), timm.create_model("efficientnet_b0", num_classes=5).double()
    ZOO.unsettle(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_average_memory_format_and_freezing():
    model = build("resnet18", freeze=["stem", "block:0-3", "head"]).to(memory_format=torch.channels_last)
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1", "layer2", "fc"}
    assert not model.train().bn1.training
    ema = Ema(model, 0.5)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    ema.update(0)
    with ema.swap(model):
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    vit = build("vit_tiny_patch16_224", freeze=["stem"])
    frozen = [name for name, p in vit.named_parameters() if not p.requires_grad]
    assert frozen == ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]


def test_meta_builds_allocate_nothing():
    with torch.device("meta"):
        model = build("vit_tiny_patch16_224", 96)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.pos_embed.shape[1] == 6 * 6 + 1


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("convnxt_tiny", {}, r"timm has no model 'convnxt_tiny'\. Did you mean 'timm/convnext_tiny'"),
        ("resnet_50", {}, r"Did you mean 'timm/resnet50'"),
        ("resnet50.a1_in", {}, r"no weights tagged 'a1_in'; its tags are a1_in1k.*Did you mean 'a1_in1k'"),
        ("resnet18", {"join": {"name": "none"}}, r"model\.join\.name is 'none', but timm/resnet18 adds"),
        ("resnet18", {"stem": "deep"}, r"model\.stem does nothing for timm/resnet18"),
        ("resnet18", {"zero_init": True}, r"model\.zero_init does nothing"),
        ("resnet18", {"drop_path": {"rate": 0.1, "decay": "constant"}}, r"model\.drop_path\.decay is 'constant'"),
        ("vgg11_bn", {"drop_path": {"rate": 0.1}}, r"timm/vgg11_bn has no stochastic depth"),
        ("densenet121", {"drop_path": {"rate": 0.1}}, r"timm/densenet121 has no stochastic depth"),
        ("tnt_s_legacy_patch16_224", {"drop_path": {"rate": 0.1}}, r"one drop path for branches of different numbers"),
        ("vit_tiny_patch16_224", {"freeze": ["block:12"]}, r"blocks are 0-11"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name, more, message):
    with pytest.raises(UserError, match=message):
        build(name, **more)


def test_sizes_that_do_not_fit_are_told():
    with pytest.raises(UserError, match=r"timm/convit_tiny does not take images of 224 x 224, 160 x 160 pixels"):
        build_model({"name": "timm/convit_tiny", "classes": 5}, sides=(224, 160))
    model = build_model({"name": "timm/vit_tiny_patch16_224", "classes": 5}, sides=(64, 96))
    assert model.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 5)


def test_dropout_that_would_draw_is_off_and_said():
    model = build("bat_resnext26ts", 256)
    assert "dropout is off" in model.notices[0]
    assert not any(m.p for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd))


class Drawing(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw, self.fc = draw, nn.Linear(3, 5)

    def forward(self, x):
        return self.fc(x.mean((2, 3)) * self.draw(x))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda x: torch.rand(3), "draws from torch's generator"),
        (lambda x: nn.functional.alpha_dropout(x.mean((2, 3)), 0.5, True), "draws from torch's generator"),
        (lambda x: float(np.random.rand()), "draws from a process-wide generator"),
        (lambda x: random.random(), "draws from a process-wide generator"),
    ],
)
def test_a_forward_that_draws_is_found(draw, message):
    from restrain.models.foreign.trial import trial

    with torch.device("meta"), pytest.raises(UserError, match=message):
        trial(Drawing(draw), "timm/drawing", 5, 3, (8,))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.SyncBatchNorm(3), "SyncBatchNorm"),
        (nn.BatchNorm3d(3), "BatchNorm3d"),
        (nn.LSTM(3, 3, 2, dropout=0.1), "LSTM"),
    ],
)
def test_parts_that_cannot_keep_the_contract_are_named(part, message):
    from restrain.models.foreign.adopt import adopt

    with pytest.raises(UserError, match=message):
        adopt(nn.Sequential(part), "timm/some")


def test_a_parameter_that_takes_no_part_is_frozen_and_said():
    from restrain.models.foreign.trial import trial

    class Idle(Drawing):
        def __init__(self):
            super().__init__(lambda x: 1.0)
            self.never, self.norm = nn.Linear(2, 2), GroupedBatchNorm2d(3)

    with torch.device("meta"):
        model = Idle()
        notices = trial(model, "timm/idle", 5, 3, (8,))
    assert "2 parameter(s) take no part" in notices[0] or "4 parameter(s)" in notices[0]
    assert not model.never.weight.requires_grad
    assert model.norm.frozen
