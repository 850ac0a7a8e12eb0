"""Text from a language model, token by token, drawn from keys.

Shapes: B rows, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from restrain.draws import Purpose, key, mix_torch, signed, uniform_torch
from restrain.errors import UserError
from restrain.models.transformers.attention import KeyValueCache
from restrain.models.transformers.gpt import Gpt


def sample_tokens(model: Gpt, prompt_BT: Tensor, count: int, **how: Any) -> Tensor:
    """All that :func:`drawn_tokens` draws: int64 [B, count]."""
    drawn = list(drawn_tokens(model, prompt_BT, count, **how))
    return torch.stack(drawn, 1) if drawn else prompt_BT[:, :0]


def drawn_tokens(
    model: Gpt,
    prompt_BT: Tensor,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    cache: bool = True,
    known: int | None = None,
) -> Iterator[Tensor]:
    """``count`` tokens after a prompt, one by one: int64 [B]. A pure function of its arguments; no generator is read.

    ``temperature`` divides the logits, 0 takes the likeliest token; ``top_k``: only the k likeliest are drawn from.
    The draw of a token is a function of (seed, its number, its row). Where prompt and tokens outgrow the model's
    context, the oldest are forgotten. ``cache``: keys and values are kept, for the same tokens in less time. ``known``:
    tokens that mean anything, where the model has more outputs than that; the others are never drawn. The model is in
    evaluation mode until the last token is drawn.

    Raises, before any token is drawn:
        UserError: an empty prompt, a token that the model does not have, a temperature or top_k that means nothing.
    """
    _check(model, prompt_BT, temperature, top_k)

    def chosen(logits_BV: Tensor, number: int) -> Tensor:
        return choose(logits_BV[:, :known], temperature, top_k, key(seed, Purpose.SAMPLE, number))

    return _drawn(model, prompt_BT, count, chosen, model.empty_caches() if cache else None)


@torch.no_grad()
def _drawn(
    model: Gpt,
    tokens_BT: Tensor,
    count: int,
    chosen: Callable[[Tensor, int], Tensor],
    caches: list[KeyValueCache] | None,
) -> Iterator[Tensor]:
    training = model.training
    model.eval()
    try:
        context = model.spec.context
        for number in range(count):
            caches = caches if tokens_BT.shape[1] <= context else None  # positions move when the window slides
            chosen_B = chosen(_next_logits(model, tokens_BT[:, -context:], caches), number)
            tokens_BT = torch.cat((tokens_BT, chosen_B[:, None]), 1)
            yield chosen_B
    finally:
        model.train(training)


def _next_logits(model: Gpt, tokens_BT: Tensor, caches: list[KeyValueCache] | None) -> Tensor:
    """The logits [B, V] of the token after ``tokens_BT``, those that the caches hold among them."""
    if caches is None:
        return model(tokens_BT)[:, -1]
    return model(tokens_BT[:, caches[0].tokens :], caches=caches)[:, -1]


def choose(logits_BV: Tensor, temperature: float, top_k: int | None, drawn: int) -> Tensor:
    """One token a row, int64 [B], by inverting the distribution function at a uniform number of key (drawn, row)."""
    if temperature == 0.0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.double() / temperature
    if top_k is not None and top_k < logits_BV.shape[1]:
        least_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    below_BV = logits_BV.softmax(-1).cumsum(-1)
    row_B = torch.arange(logits_BV.shape[0], device=logits_BV.device)
    u_B1 = uniform_torch(mix_torch(signed(drawn), row_B))[:, None]
    # Times the last sum, which rounding leaves a little beside 1; right: a token of probability 0 is never hit.
    return torch.searchsorted(below_BV, u_B1 * below_BV[:, -1:], right=True)[:, 0].clamp_(max=logits_BV.shape[1] - 1)


def _check(model: Gpt, prompt_BT: Tensor, temperature: float, top_k: int | None) -> None:
    vocabulary = model.tok_embed.num_embeddings
    if prompt_BT.dim() != 2 or prompt_BT.shape[1] == 0:
        raise UserError("The prompt is empty: text goes on from at least one token.")
    if not 0 <= int(prompt_BT.min()) <= int(prompt_BT.max()) < vocabulary:
        raise UserError(
            f"The prompt has tokens from {int(prompt_BT.min())} to {int(prompt_BT.max())}, and the model knows 0 to "
            f"{vocabulary - 1}: it was trained on another vocabulary."
        )
    if not 0 <= temperature < math.inf:  # NaN is neither
        raise UserError(f"A temperature of {temperature}: it is 0, for the likeliest token, or more.")
    if top_k is not None and top_k < 1:
        raise UserError(f"A top-k of {top_k}: at least one token has to be left to choose from.")
