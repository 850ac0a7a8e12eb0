"""What all transformers share: blocks of two joins, in three orders, with every join that makes sense."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models import (
    build_model,
    init_model,
    joins,
    materialise,
    named_dropouts,
    named_joins,
    residual_blocks,
    set_dropout_keys,
    set_factors,
)
from restrain.models.foreign.trial import NoDraws
from restrain.models.init import fills
from restrain.parallel.blocks import apply_compile, apply_remat

# torch hides this warning of its own tracer with a filter that pytest's "error" overrides.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

ROWS, TOKENS = 4, 12
GPT = {"name": "gpt", "classes": 29, "shape": {"depth": 3, "width": 32, "heads": 2, "context": TOKENS}}
VIT = {"name": "vit", "classes": 5, "shape": {"depth": 3, "width": 32, "heads": 2, "patch": 4}}
BERT = {"name": "bert", "classes": 29, "shape": {"depth": 3, "width": 32, "heads": 2, "context": TOKENS}}
FAMILIES = {"gpt": GPT, "vit": VIT, "bert": BERT}
JOINS = [
    {"name": "add"},
    {"name": "add", "scale": "layerscale", "init": 0.3},
    {"name": "add", "scale": "rezero", "init": 0.5},
    {"name": "gate", "bias": -1.0},
    {"name": "scale", "shortcut": 0.5, "branch": 0.5},
    {"name": "shortcut_gate", "bias": -1.0},
    {"name": "exclusive_gate", "bias": -1.0},
    {"name": "conv1x1"},
]


def built(family: str = "gpt", seed: int = 0, **more: Any) -> nn.Module:
    """A small model in float64 whose parameters are all random: fresh ones hide much behind zeros and ones."""
    model = build_model(FAMILIES[family] | more, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.4 if parameter.dim() < 2 else 1 / math.sqrt(parameter[0].numel())
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=spread)
    return model


def inputs(family: str, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return torch.randn(rows, 3, 16, 16, generator=generator, dtype=torch.float64)
    return torch.randint(0, 29, (rows, TOKENS), generator=generator)


def stream(width: int = 32, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows, TOKENS, width, generator=generator, dtype=torch.float64)


def dropping(family: str, order: str = "pre", rate: float = 0.5, **more: Any) -> nn.Module:
    return built(family, transformer={"order": order}, drop_path={"rate": rate, "decay": "constant"}, **more).train()


@pytest.mark.parametrize("order", ["pre", "post", "deepnorm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_factors_zero_the_trunk_is_its_skip_path(family, order):
    model = dropping(family, order)
    blocks = [block for _, block in residual_blocks(model)]
    set_factors(model, torch.zeros(2 * len(blocks), ROWS))
    alpha = (2 * len(blocks)) ** 0.25
    x = expected = stream()
    for block in blocks:
        for norm in (block.norm1, block.norm2):
            if order == "deepnorm":
                expected = alpha * expected
            expected = expected if order == "pre" else F.layer_norm(expected, (32,), norm.weight, norm.bias, norm.eps)
        x = block(x)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("order", ["pre", "post", "deepnorm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_branches_rebuild_the_output(family, order):
    model = dropping(family, order)
    set_factors(model, torch.ones(6, ROWS))
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for _, join in named_joins(model):
        join.observers.append(lambda join, x, branch, y: seen.append((x, branch, y)))
    blocks = [block for _, block in residual_blocks(model)]
    last: list[Tensor] = []
    blocks[-1].register_forward_hook(lambda module, args, y: last.append(y))
    model(inputs(family))
    alpha = 6**0.25 if order == "deepnorm" else 1.0
    x = seen[0][0]
    for (_, branch, _), norm in zip(seen, [norm for b in blocks for norm in (b.norm1, b.norm2)], strict=True):
        x = alpha * x + branch
        x = x if order == "pre" else norm(x)
    torch.testing.assert_close(last[0], x, rtol=1e-12, atol=1e-12)
    if order == "pre":
        torch.testing.assert_close(seen[0][0] + sum(branch for _, branch, _ in seen), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("join", JOINS, ids=lambda join: "-".join(map(str, join.values())))
def test_every_join_that_keeps_the_width_works(join, order):
    model = built("gpt", join=join, transformer={"order": order}).train()
    block = residual_blocks(model)[1][1]
    x = stream()
    (_, first), (_, second) = joins(block)
    if order == "pre":
        between = first(x, block.attn(block.norm1(x)))
        expected = second(between, block.mlp(block.norm2(between)))
    else:
        between = block.norm1(first(x, block.attn(x)))
        expected = block.norm2(second(between, block.mlp(between)))
    assert torch.equal(block(x), expected)
    if order == "pre":
        without = second.without(first.without(x))
    else:
        without = block.norm2(second.without(block.norm1(first.without(x))))
    block.skipped = True
    assert torch.equal(block(x), without)
    assert not torch.equal(without, expected)


def test_a_transformer_without_skips_is_its_branches():
    model = built("gpt", join={"name": "none"})
    block = residual_blocks(model)[0][1]
    x = stream()
    expected = block.mlp(block.norm2(block.attn(block.norm1(x))))
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_concat_is_refused_by_name(family):
    with pytest.raises(UserError, match=r"model\.join\.name is 'concat'.*transformer"):
        build_model(FAMILIES[family] | {"join": {"name": "concat"}})


@pytest.mark.parametrize("join", [{"name": "gate"}, {"name": "add", "scale": "rezero"}])
def test_deepnorm_takes_the_plain_sum_alone(join):
    with pytest.raises(UserError, match=r"order is deepnorm.*model\.join\.name is 'add' with scale 'one'"):
        build_model(GPT | {"join": join, "transformer": {"order": "deepnorm"}})


@pytest.mark.parametrize("order", ["pre", "post", "deepnorm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_subset_of_rows_is_what_zeros_would_leave(family, order):
    """Mode subset: the branch of k of n rows, scaled by n / k, against factors of 0 and n / k for all rows."""
    model = dropping(family, order)
    kept = [torch.tensor(rows) for rows in ([0, 2], [1, 2], [1, 3], [0, 3], [2, 3], [0, 1])]
    factors = torch.zeros(6, ROWS)
    for row, rows in zip(factors, kept, strict=True):
        row[rows] = ROWS / 2
    set_factors(model, factors)
    x = inputs(family)
    model(x).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    logits = model(x)
    model.zero_grad()
    set_factors(model, torch.full((6, 2), ROWS / 2))
    for (_, join), rows in zip(named_joins(model), kept, strict=True):
        join.rows = rows
    found = model(x)
    torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-12)
    found.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-11, msg=name)


def test_a_subset_of_rows_sees_its_own_documents():
    model = dropping("gpt")
    documents = torch.randint(0, 3, (ROWS, TOKENS), generator=torch.Generator().manual_seed(4)).sort(1).values
    rows = torch.tensor([1, 3])
    set_factors(model, torch.tensor([[0.0, 2.0, 0.0, 2.0]]).repeat(6, 1))
    expected = model(inputs("gpt"), documents)
    set_factors(model, torch.full((6, 2), 2.0))
    for _, join in named_joins(model):
        join.rows = rows
    torch.testing.assert_close(model(inputs("gpt"), documents), expected, rtol=1e-12, atol=1e-12)


def test_subset_and_dropout_are_refused_together():
    wish = {"transformer": {"dropout": 0.1}, "drop_path": {"rate": 0.1, "mode": "subset"}}
    with pytest.raises(UserError, match=r"mode is 'subset', but model\.transformer\.dropout"):
        build_model(GPT | wish)


def test_both_joins_of_a_block_have_its_rate():
    model = build_model(GPT | {"drop_path": {"rate": 0.3}})
    assert [join.rate for _, join in named_joins(model)] == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert [name for name, _ in named_joins(model)][:2] == ["blocks.0.join1", "blocks.0.join2"]
    assert [name for name, _ in residual_blocks(model)] == ["blocks.0", "blocks.1", "blocks.2"]


# ------------------------------------------------------------------------------------ rematerialisation and compile


@pytest.mark.parametrize("change", [lambda m: apply_remat(m), lambda m: apply_compile(m, "aot_eager")])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_and_compiled_blocks_have_the_same_gradients(family, change):
    models = [dropping(family), dropping(family)]
    change(models[1])
    for model in models:
        set_factors(model, torch.rand(6, ROWS, generator=torch.Generator().manual_seed(3)).round() * 2)
        model(inputs(family)).square().mean().backward()
    expected = dict(models[0].named_parameters())
    for name, parameter in models[1].named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-10, atol=1e-12, msg=name)


# ------------------------------------------------------------------------------------------------- draws and weights


@pytest.mark.parametrize("family", FAMILIES)
def test_no_generator_is_read(family):
    before = torch.get_rng_state()
    model = build_model(FAMILIES[family] | {"transformer": {"dropout": 0.2}, "drop_path": {"rate": 0.2}}).train()
    set_factors(model, torch.ones(6, ROWS))
    dropouts = [dropout for _, dropout in named_dropouts(model)]
    assert len(dropouts) == 7
    set_dropout_keys(dropouts, torch.arange(7 * ROWS).view(7, ROWS))
    x = inputs(family)
    with NoDraws():
        model(x.float() if family == "vit" else x).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", ["pre", "deepnorm"])
def test_weights_on_the_meta_device_become_those_of_the_seed(family, order):
    wish = FAMILIES[family] | {"transformer": {"order": order, "norm": "rmsnorm", "qk_norm": True}}
    with torch.device("meta"):
        model = build_model(wish)
    materialise(model, "cpu", seed=3)
    expected = build_model(wish, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def stds(model: nn.Module, block: int = 0) -> dict[str, float]:
    found = {name: fill.scale for name, fill in fills(model).items() if name.startswith(f"blocks.{block}.")}
    return {name.removeprefix(f"blocks.{block}.").removesuffix(".weight"): std for name, std in found.items()}


def test_gpt2_scales_what_ends_a_branch():
    found = stds(build_model(GPT))
    assert found["attn.proj"] == found["mlp.fc2"] == pytest.approx(0.02 / math.sqrt(2 * 3))
    assert found["attn.qkv"] == found["mlp.fc1"] == 0.02
    fresh = build_model(GPT | {"shape": GPT["shape"] | {"width": 128}})
    init_model(fresh, 5)
    assert fresh.get_parameter("blocks.1.mlp.fc2.weight").std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.02)
    assert fresh.get_parameter("tok_embed.weight").std().item() == pytest.approx(0.02, rel=0.03)


def test_deepnorm_scales_the_shortcut_and_the_values():
    """Wang et al. 2022, figure 2: Xavier's normal, times beta for all but queries and keys."""
    model = build_model(GPT | {"transformer": {"order": "deepnorm"}})
    found, beta = stds(model), (8 * 3) ** -0.25
    assert found["attn.qk"] == pytest.approx(math.sqrt(2 / 64))
    assert found["attn.v"] == found["attn.proj"] == pytest.approx(beta * math.sqrt(2 / 64))
    assert found["mlp.fc1"] == found["mlp.fc2"] == pytest.approx(beta * math.sqrt(2 / (32 + 128)))
    assert {join.shortcut for _, join in named_joins(model)} == {(2 * 3) ** 0.25}


def test_branches_start_at_zero_where_the_recipe_says_so():
    for zero_init, ends in ((True, 0.0), ("auto", 0.02 / math.sqrt(6)), (False, 0.02 / math.sqrt(6))):
        found = stds(build_model(GPT | {"zero_init": zero_init}))
        assert found["attn.proj"] == found["mlp.fc2"] == pytest.approx(ends)
    model = build_model(VIT | {"zero_init": True}).eval()
    block = residual_blocks(model)[0][1]
    assert torch.equal(block(stream().float()), stream().float())


def test_parts_can_be_frozen():
    for family in FAMILIES:
        model = build_model(FAMILIES[family] | {"freeze": ["stem", "block:0-1"]})
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        stem = {"gpt": {"tok_embed", "pos_embed"}, "vit": {"patch_embed"}}
        names = stem.get(family, {"tok_embed", "pos_embed", "seg_embed", "embed_norm"}) | {"blocks.0", "blocks.1"}
        own = [name for name, _ in model.named_parameters()]
        assert frozen == {name for name in own if any(name.startswith(f"{part}.") for part in names)}


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": {"width": 32, "context": 8}}, r"model\.shape\.depth is missing: gpt has no size of its own"),
        ({"shape": {"depth": 2, "width": 32}}, r"model\.shape\.context is missing"),
        ({"shape": GPT["shape"] | {"heads": 3}}, r"model\.shape\.heads is 3, which does not divide the width 32; .*2"),
        ({"shape": GPT["shape"] | {"patch": 4}}, r"model\.shape\.patch does nothing for gpt.*context"),
        ({"transformer": {"pool": "avg"}}, r"model\.transformer\.pool does nothing for gpt"),
        ({"transformer": {"norm": "layer"}}, r"model\.transformer\.norm is 'layer'; of gpt it is layernorm, rmsnorm"),
        ({"transformer": {"order": "past"}}, r"order is 'past'.*Did you mean 'post'"),
        ({"transformer": {"activation": "gelo"}}, r"activation is 'gelo'.*Did you mean 'gelu'"),
        ({"transformer": {"position": "rotory"}}, r"position is 'rotory'.*Did you mean 'rotary'"),
        ({"transformer": {"dropout": 1.0}}, r"model\.transformer\.dropout is 1\.0"),
        (
            {"shape": {"depth": 1, "width": 30, "heads": 2, "context": 8}, "transformer": {"position": "rotary"}},
            r"position is rotary.*15 a head",
        ),
        (
            {"shape": {"depth": 1, "width": 30, "heads": 2, "context": 8}, "transformer": {"position": "sincos"}},
            r"position is sincos, which needs a width that 4 divides, not 30",
        ),
    ],
)
def test_bad_wishes_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        build_model(GPT | change)


def test_the_recipe_knows_the_keys_of_each_family():
    from restrain.models.transformers.bert import BertSpec
    from restrain.models.transformers.gpt import GptSpec
    from restrain.models.transformers.vit import VitSpec
    from restrain.recipe.model_names import FAMILIES as KNOWN

    for family, spec in {"gpt": GptSpec, "vit": VitSpec, "bert": BertSpec}.items():
        assert (KNOWN[family].shape, KNOWN[family].transformer) == (spec.SHAPE, spec.OPTIONS)
