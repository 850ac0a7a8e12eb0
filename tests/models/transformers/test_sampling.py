"""Generated text: a function of its arguments, the same with and without a cache, and of the right frequencies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models import build_model
from restrain.models.foreign.trial import NoDraws
from restrain.models.transformers.sampling import choose, sample_tokens

VOCABULARY, CONTEXT = 23, 16


def small(**transformer: object) -> nn.Module:
    shape = {"depth": 2, "width": 32, "heads": 2, "context": CONTEXT}
    model = build_model({"name": "gpt", "classes": VOCABULARY, "shape": shape, "transformer": transformer}, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # fresh logits are all alike
    return model.double()


def prompt(rows: int = 2) -> Tensor:
    return torch.arange(3 * rows).view(rows, 3) % VOCABULARY


@pytest.mark.parametrize("position", ["learned", "rotary", "sincos"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("count", [5, CONTEXT - 2, 3 * CONTEXT])
def test_tokens_are_the_same_with_a_cache_and_without(position, temperature, count):
    model = small(position=position)
    found = [sample_tokens(model, prompt(), count, temperature=temperature, top_k=9, cache=c) for c in (True, False)]
    assert found[0].shape == (2, count)
    assert torch.equal(*found)


def test_a_cache_computes_each_token_once():
    model, seen = small(), []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    sample_tokens(model, prompt(), 6)
    assert seen == [3, 1, 1, 1, 1, 1]


def test_tokens_are_a_function_of_seed_and_prompt():
    model = small()
    before = torch.get_rng_state()
    with NoDraws():
        found = sample_tokens(model, prompt(), 12, seed=5)
    assert torch.equal(found, sample_tokens(model, prompt(), 12, seed=5))
    assert not torch.equal(found, sample_tokens(model, prompt(), 12, seed=6))
    assert torch.equal(found[:, :4], sample_tokens(model, prompt(), 4, seed=5))
    assert torch.equal(found[:1], sample_tokens(model, prompt(1), 12, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_rows_of_one_prompt_go_different_ways():
    found = sample_tokens(small(), prompt(1).expand(4, -1), 12)
    assert len({tuple(row) for row in found.tolist()}) == 4


def test_tokens_of_a_row_are_drawn_on_their_own():
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # all tokens are alike
    found = sample_tokens(model, prompt(), 4 * VOCABULARY)
    assert all(len(set(row)) > VOCABULARY // 2 for row in found.tolist())


def test_the_likeliest_token_has_temperature_zero():
    model = small().eval()
    tokens = prompt()
    for _ in range(4):
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(sample_tokens(model, prompt(), 4, temperature=0.0), tokens[:, 3:])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_frequencies_are_the_softmax(temperature):
    logits = torch.tensor([1.0, -1.0, 0.5, 2.0, -3.0])
    found = choose(logits.expand(200_000, -1), temperature, None, 7).bincount(minlength=5) / 200_000
    torch.testing.assert_close(found, (logits / temperature).softmax(0), atol=4e-3, rtol=0)


def test_top_k_leaves_the_likeliest():
    logits = torch.tensor([1.0, -1.0, 0.5, 2.0, -3.0])
    found = choose(logits.expand(100_000, -1), 1.0, 2, 7).bincount(minlength=5) / 100_000
    expected = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0]).exp() * torch.tensor([1.0, 0, 0, 1, 0])
    torch.testing.assert_close(found, expected / expected.sum(), atol=6e-3, rtol=0)
    assert found[[1, 2, 4]].sum() == 0
    assert torch.equal(choose(logits[None], 1.0, 1, 3), torch.tensor([3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_BT": torch.zeros(1, 0, dtype=torch.int64)}, "prompt is empty"),
        (
            {"prompt_BT": torch.tensor([[3, VOCABULARY]])},
            rf"tokens from 3 to {VOCABULARY}, and the model knows 0 to 22",
        ),
        ({"temperature": -1.0}, r"temperature of -1\.0"),
        ({"top_k": 0}, "top-k of 0"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        sample_tokens(**{"model": small(), "prompt_BT": prompt(), "count": 2} | change)


def test_outputs_that_mean_nothing_are_never_drawn():
    model = small()
    found = sample_tokens(model, prompt() % 5, 60, temperature=50.0, known=5)
    assert int(found.max()) == 4
    assert int(sample_tokens(model, prompt() % 5, 60, temperature=50.0).max()) > 4


@pytest.mark.parametrize("temperature", [float("nan"), float("inf"), -1.0])
def test_a_temperature_is_a_number(temperature):
    with pytest.raises(UserError, match="A temperature of"):
        sample_tokens(small(), prompt(), 1, temperature=temperature)
