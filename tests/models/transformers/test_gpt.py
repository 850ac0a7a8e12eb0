"""GPT against the equations of its papers, its published files, and its own past."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from restrain.errors import UserError
from restrain.insight.cost import weightless
from restrain.models import build_model, named_joins, residual_blocks
from restrain.models.layers import Embedding, Linear
from restrain.models.transformers.gpt2_layout import NAMES
from restrain.models.weights import fit_weights, load_weights

VOCABULARY, CONTEXT, WIDTH, HEADS, DEPTH = 31, 16, 24, 3, 3
SHAPE = {"depth": DEPTH, "width": WIDTH, "heads": HEADS, "context": CONTEXT}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied": False},
    {"position": "sincos", "qk_norm": True},
    {"position": "none", "activation": "relu2", "order": "post"},
    {"position": "rotary", "order": "deepnorm"},
]
IDS = ["-".join(map(str, variant.values())) or "gpt2" for variant in VARIANTS]


def small(seed: int = 0, **transformer: Any) -> nn.Module:
    wish = {"name": "gpt", "classes": VOCABULARY, "shape": SHAPE, "transformer": transformer}
    model = build_model(wish, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.4 if parameter.dim() < 2 else 1 / math.sqrt(parameter.shape[1])
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=spread)
    return model


def tokens(rows: int = 2, length: int = CONTEXT, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------ GPT-2, from its published layout


def published(seed: int = 0, prefix: str = "") -> dict[str, Tensor]:
    """Random tensors under the names and in the shapes of GPT-2's published files."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * (0.3 if len(shape) == 1 else 0.2)

    found = {"wte.weight": draw(VOCABULARY, WIDTH), "wpe.weight": draw(CONTEXT, WIDTH)}
    for block in range(DEPTH):
        for norm in ("ln_1", "ln_2"):
            found |= {f"h.{block}.{norm}.weight": 1 + draw(WIDTH), f"h.{block}.{norm}.bias": draw(WIDTH)}
        for name, ins, outs in (
            ("attn.c_attn", WIDTH, 3 * WIDTH),
            ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH),
            ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):
            found |= {f"h.{block}.{name}.weight": draw(ins, outs), f"h.{block}.{name}.bias": draw(outs)}
        found[f"h.{block}.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT).tril()
    found |= {"ln_f.weight": 1 + draw(WIDTH), "ln_f.bias": draw(WIDTH)}
    return {prefix + name: tensor for name, tensor in found.items()}


def gpt2_logits(w: dict[str, Tensor], row: list[int]) -> Tensor:
    """One sequence through GPT-2, from the papers' equations, a head and a token at a time: [T, V]."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        deviation = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / (deviation + 1e-5) ** 0.5 * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    size = WIDTH // HEADS
    x = torch.stack([w["wte.weight"][token] + w["wpe.weight"][place] for place, token in enumerate(row)])
    for block in range(DEPTH):
        queries, keys, values = affine(norm(x, f"h.{block}.ln_1"), f"h.{block}.attn.c_attn").split(WIDTH, 1)
        mixed = torch.zeros_like(x)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for place in range(len(row)):
                scores = keys[: place + 1, part] @ queries[place, part] / math.sqrt(size)
                weights = (scores - scores.max()).exp()
                mixed[place, part] = weights @ values[: place + 1, part] / weights.sum()
        x = x + affine(mixed, f"h.{block}.attn.c_proj")
        x = x + affine(gelu(affine(norm(x, f"h.{block}.ln_2"), f"h.{block}.mlp.c_fc")), f"h.{block}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def ours_of(tensors: dict[str, Tensor]) -> nn.Module:
    wish = {"name": "gpt", "classes": VOCABULARY, "shape": SHAPE, "transformer": {"activation": "gelu_tanh"}}
    model = build_model(wish).double().eval()
    load_weights(model, fit_weights(model, tensors, "gpt2.safetensors"))
    return model


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_published_weights_compute_what_the_equations_say(prefix):
    weights = published(prefix=prefix)
    extra = {"lm_head.weight": weights[f"{prefix}wte.weight"]} if prefix else {}
    found = ours_of(weights | extra)(tokens())
    for row, logits in zip(tokens().tolist(), found, strict=True):
        torch.testing.assert_close(logits, gpt2_logits(published(), row), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("matrix", ["attn.c_proj", "ln_2", "mlp.c_fc"])
def test_the_same_check_catches_a_mutation(matrix):
    weights = published()
    mutated = weights | {f"h.1.{matrix}.weight": weights[f"h.1.{matrix}.weight"] * 1.001}
    found = ours_of(mutated)(tokens())[0]
    assert (found - gpt2_logits(weights, tokens().tolist()[0])).abs().max() > 1e-6


def test_a_square_matrix_is_turned_too():
    """attn.c_proj fits either way round: only what it computes tells."""
    weights = published()
    ours = ours_of(weights)
    assert torch.equal(ours.blocks[1].attn.proj.weight, weights["h.1.attn.c_proj.weight"].T)


def test_gradients_are_those_of_the_equations():
    weights = {name: tensor.requires_grad_("attn.bias" not in name) for name, tensor in published().items()}
    ours = ours_of({name: tensor.detach() for name, tensor in weights.items()}).train()
    ours(tokens()).square().sum().backward()
    torch.stack([gpt2_logits(weights, row) for row in tokens().tolist()]).square().sum().backward()
    assert set(NAMES) >= {"wte", "attn.c_attn"}
    gradient = ours.blocks[0].attn.qkv.weight.grad
    pairs = [
        (gradient.T, weights["h.0.attn.c_attn.weight"].grad),
        (ours.tok_embed.weight.grad, weights["wte.weight"].grad),
        (ours.pos_embed.weight.grad, weights["wpe.weight"].grad),
        (ours.blocks[2].norm2.bias.grad, weights["h.2.ln_2.bias"].grad),
    ]
    for found, expected in pairs:
        assert (found - expected).abs().max() / expected.abs().max() < 1e-7


def test_a_tensor_without_a_place_is_named():
    with pytest.raises(UserError, match=r"gpt2\.safetensors does not fit.*1 unexpected \(h\.0\.ln_3\.weight\)"):
        ours_of(published() | {"h.0.ln_3.weight": torch.ones(3)})
    with pytest.raises(UserError, match=r"1 missing \(blocks\.1\.mlp\.fc1\.weight\)"):
        ours_of({name: tensor for name, tensor in published().items() if name != "h.1.mlp.c_fc.weight"})


def test_logits_are_those_of_a_well_kept_library():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=DEPTH, n_head=HEADS
    )
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
        torch.testing.assert_close(
            ours_of(dict(theirs.state_dict()))(tokens()), theirs(tokens()).logits, rtol=1e-9, atol=1e-10
        )


# ------------------------------------------------------------------------------------------------------- free variants


def rotary_logits(model: nn.Module, row: list[int]) -> Tensor:
    """RMSNorm, rotations as complex numbers, SwiGLU, untied: one sequence from the papers' equations, [T, V]."""
    w = dict(model.state_dict())
    size, length = WIDTH // HEADS, len(row)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / ((x**2).mean(-1, keepdim=True) + 1e-5) ** 0.5 * w[name]

    def turned(x: Tensor) -> Tensor:
        rate = torch.tensor([10_000 ** (-2 * k / size) for k in range(size // 2)], dtype=torch.float64)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
        return torch.complex(x[:, : size // 2], x[:, size // 2 :]) * torch.polar(torch.ones_like(angle), angle)

    x = w["tok_embed.weight"][row]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    for block in range(DEPTH):
        at = f"blocks.{block}"
        qkv = norm(x, f"{at}.norm1.weight") @ w[f"{at}.attn.qkv.weight"].T
        mixed = []
        for head in range(HEADS):
            q, k, v = (part[:, head * size : (head + 1) * size] for part in qkv.split(WIDTH, 1))
            scores = (turned(q) @ turned(k).conj().T).real / math.sqrt(size)
            mixed.append(scores.masked_fill(hidden, -math.inf).softmax(1) @ v)
        x = x + torch.cat(mixed, 1) @ w[f"{at}.attn.proj.weight"].T
        gate, value = (norm(x, f"{at}.norm2.weight") @ w[f"{at}.mlp.fc1.weight"].T).chunk(2, 1)
        x = x + (gate / (1 + (-gate).exp()) * value) @ w[f"{at}.mlp.fc2.weight"].T
    return norm(x, "norm.weight") @ w["head.weight"].T


def test_rotations_rmsnorm_and_swiglu_are_those_of_their_papers():
    model = small(**VARIANTS[1])
    found = model(tokens())
    for row, logits in zip(tokens().tolist(), found, strict=True):
        torch.testing.assert_close(logits, rotary_logits(model, row), rtol=1e-9, atol=1e-11)
    assert model.blocks[0].mlp.fc2.in_features == 64  # 2/3 of 4 x 24, in 64s


@pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
def test_the_past_never_sees_the_future(variant):
    model = small(**variant)
    for place in (1, 7, CONTEXT - 1):
        changed = tokens().clone()
        changed[:, place:] = (changed[:, place:] + 1 + torch.arange(CONTEXT - place)) % VOCABULARY
        before, after = model(tokens()), model(changed)
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.equal(before[:, place:], after[:, place:])


@pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
def test_documents_do_not_see_each_other(variant):
    model, length = small(**variant | {"position": "none"}), CONTEXT // 2
    documents = torch.tensor([[0] * length + [1] * length])
    found = model(tokens(1), documents)
    for part in (slice(0, length), slice(length, CONTEXT)):
        torch.testing.assert_close(found[:, part], model(tokens(1)[:, part]), rtol=1e-10, atol=1e-12)


def test_rotary_scores_depend_on_distances_alone():
    model = small(position="rotary", order="pre")
    documents = torch.tensor([[0] * 5 + [1] * (CONTEXT - 5)])
    torch.testing.assert_close(model(tokens(1), documents)[:, 5:], model(tokens(1)[:, 5:]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
def test_a_cache_changes_no_logit(variant):
    model = small(**variant)
    caches = model.empty_caches()
    parts = [model(part, caches=caches) for part in tokens().split([5, 1, 4, 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens()), rtol=1e-10, atol=1e-12)
    with pytest.raises(UserError, match=rf"{CONTEXT + 1} tokens does not fit the model, whose positions end at"):
        model(tokens(length=1), caches=caches)


def test_a_sequence_beyond_the_positions_is_refused():
    with pytest.raises(UserError, match=r"17 tokens.*end at 16 \(model\.shape\.context\).*context=17") as caught:
        small()(tokens(length=17))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ counts of the papers


def on_meta(name: str, **more: Any) -> nn.Module:
    with torch.device("meta"):
        return build_model({"name": name, "classes": 50257, **more})


@pytest.mark.parametrize(
    ("name", "parameters", "blocks"),
    [
        ("gpt2", 124_439_808, 12),  # Radford et al. 2019, table 2, counts 117 M; the published files hold 124 M
        ("gpt2_medium", 354_823_168, 24),
        ("gpt2_large", 774_030_080, 36),
        ("gpt2_xl", 1_557_611_200, 48),  # 1542 M in the table
        ("gpt3_175b", 174_604_259_328, 96),  # Brown et al. 2020, table D.1: 174,600 M
    ],
)
def test_parameters_and_blocks_of_the_papers(name, parameters, blocks):
    model = on_meta(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(residual_blocks(model)) == blocks
    assert len(named_joins(model)) == 2 * blocks
    projections = [module for module in model.modules() if isinstance(module, Linear)]
    assert len(projections) == 4 * blocks  # 384 of GPT-3; and two embeddings
    assert sum(isinstance(module, Embedding) for module in model.modules()) == 2


def multiply_adds(model: nn.Module, length: int) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        weightless(model).eval()(torch.empty(1, length, dtype=torch.int64))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["gpt2", "gpt3_175b"])
def test_multiply_adds_are_one_a_weight_and_token_and_those_of_attention(name):
    model = on_meta(name)
    depth, width, length = model.spec.depth, model.spec.width, model.spec.context
    weights = 12 * depth * width**2 + 50257 * width
    attention = depth * 2 * length * width  # scores and values, for each token, without the use of causality
    assert multiply_adds(model, length) == length * (weights + attention)


def test_the_flops_of_training_gpt3_are_those_of_its_paper():
    """Brown et al. 2020, table D.1: 3.14e23 floating-point operations for 300 B tokens, as 6 a parameter and token."""
    model = on_meta("gpt3_175b")
    weights = multiply_adds(model, 1) - model.spec.depth * 2 * model.spec.width
    assert 6 * weights * 300e9 == pytest.approx(3.14e23, rel=5e-3)
