"""BERT against the equations of its paper, in the orders of norm that a recipe may choose."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models import build_model, residual_blocks

VOCABULARY, CONTEXT, WIDTH, HEADS, DEPTH = 31, 12, 24, 3, 3
SHAPE = {"depth": DEPTH, "width": WIDTH, "heads": HEADS, "context": CONTEXT}
VARIANTS: list[dict[str, Any]] = [{}, {"order": "pre"}, {"order": "deepnorm"}, {"tied": False}]
IDS = ["post", "pre", "deepnorm", "untied"]


def small(**transformer: Any) -> nn.Module:
    wish = {"name": "bert", "classes": VOCABULARY, "shape": SHAPE, "transformer": transformer}
    model = build_model(wish).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.4 if parameter.dim() < 2 else 1 / math.sqrt(parameter.shape[1])
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=spread)
    return model


def tokens(rows: int = 2, length: int = CONTEXT) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def expected_logits(model: nn.Module, row: list[int], segments: list[int], order: str) -> Tensor:
    """One sequence from the equations of Vaswani et al. 2017, Devlin et al. 2018, Wang et al. 2022: [T, V]."""
    w = dict(model.state_dict())
    size, alpha = WIDTH // HEADS, (2 * DEPTH) ** 0.25 if order == "deepnorm" else 1.0

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / ((centred**2).mean(-1, keepdim=True) + 1e-12) ** 0.5 * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def attend(x: Tensor, at: str) -> Tensor:
        if order == "deepnorm":  # queries and keys are filled otherwise than values, and stand in a matrix of their own
            q_k_v = [*affine(x, f"{at}.qk").split(WIDTH, 1), affine(x, f"{at}.v")]
        else:
            q_k_v = affine(x, f"{at}.qkv").split(WIDTH, 1)
        mixed = []
        for head in range(HEADS):
            q, k, v = (part[:, head * size : (head + 1) * size] for part in q_k_v)
            scores = (q @ k.T / math.sqrt(size)).exp()
            mixed.append(scores / scores.sum(1, keepdim=True) @ v)
        return affine(torch.cat(mixed, 1), f"{at}.proj")

    def transform(x: Tensor, at: str) -> Tensor:
        return affine(gelu(affine(x, f"{at}.fc1")), f"{at}.fc2")

    x = w["tok_embed.weight"][row] + w["seg_embed.weight"][segments] + w["pos_embed.weight"][: len(row)]
    x = norm(x, "embed_norm")
    for block in range(DEPTH):
        at = f"blocks.{block}"
        if order == "pre":
            x = x + attend(norm(x, f"{at}.norm1"), f"{at}.attn")
            x = x + transform(norm(x, f"{at}.norm2"), f"{at}.mlp")
        else:
            x = norm(alpha * x + attend(x, f"{at}.attn"), f"{at}.norm1")
            x = norm(alpha * x + transform(x, f"{at}.mlp"), f"{at}.norm2")
    x = norm(x, "norm") if order == "pre" else x
    x = norm(gelu(affine(x, "head.dense")), "head.norm")
    return x @ w["tok_embed.weight" if "head.decoder.weight" not in w else "head.decoder.weight"].T + w["head.bias"]


@pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
def test_logits_are_those_of_the_equations(variant):
    model = small(**variant)
    segments = torch.tensor([[0] * 5 + [1] * 7, [0] * CONTEXT])
    found = model(tokens(), segments_BT=segments)
    for row, pair, logits in zip(tokens().tolist(), segments.tolist(), found, strict=True):
        expected = expected_logits(model, row, pair, variant.get("order", "post"))
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-11)
    assert torch.equal(model(tokens())[1], found[1])


@pytest.mark.parametrize("order", ["post", "deepnorm"])
def test_the_same_check_catches_another_order(order):
    model = small(order=order)
    row, other = tokens(1).tolist()[0], {"post": "deepnorm", "deepnorm": "post"}[order]
    for _, block in residual_blocks(model):
        for join in block.two_joins():
            join.shortcut = (2 * DEPTH) ** 0.25 if other == "deepnorm" else 1.0
    assert (model(tokens(1))[0] - expected_logits(model, row, [0] * CONTEXT, order)).abs().max() > 1e-3


def test_every_token_sees_every_other():
    model = small()
    changed = tokens(1).clone()
    changed[0, -1] = (changed[0, -1] + 1) % VOCABULARY
    assert not torch.isclose(model(tokens(1)), model(changed)).all(-1).any()


def test_documents_do_not_see_each_other():
    model = small(position="rotary")
    documents = torch.tensor([[0] * 5 + [1] * 7])
    found = model(tokens(1), documents)
    torch.testing.assert_close(found[:, :5], model(tokens(1)[:, :5]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[:, 5:], model(tokens(1)[:, 5:]), rtol=1e-10, atol=1e-12)


def test_no_token_sees_padding_in_an_evaluation():
    model = small().eval()
    padded = torch.cat([tokens(2)[:, :5], torch.full((2, 4), -1)], 1)
    found = model(padded)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[:, :5], model(tokens(2)[:, :5]), rtol=1e-10, atol=1e-12)


def test_a_sequence_beyond_the_positions_is_refused():
    with pytest.raises(UserError, match=r"13 tokens.*end at 12 \(model\.shape\.context\)"):
        small()(tokens(length=13))
    with pytest.raises(UserError, match=r"model\.shape\.context is missing"):
        build_model({"name": "bert", "classes": 7, "shape": {"depth": 1, "width": 64}})


@pytest.mark.parametrize(
    ("name", "blocks", "trunk", "whole"),
    [
        # Devlin et al. 2018, section 3: 110 M and 340 M, with the pooler of the sentence pairs, which is not here.
        ("bert_base", 12, 85_054_464, 109_514_298),
        ("bert_large", 24, 302_309_376, 335_174_458),
    ],
)
def test_parameters_of_the_paper(name, blocks, trunk, whole):
    with torch.device("meta"):
        model = build_model({"name": name, "classes": 30522})
    found = [block for _, block in residual_blocks(model)]
    assert len(found) == blocks
    assert sum(parameter.numel() for block in found for parameter in block.parameters()) == trunk
    assert sum(parameter.numel() for parameter in model.parameters()) == whole
