"""Decoder-only transformers: GPT-2 (Radford et al. 2019), GPT-3's shape (Brown et al. 2020), and free sizes.

Shapes: B rows, T tokens, D channels of the stream, V tokens of the vocabulary, K channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.dropout import KeyedDropout
from restrain.models.fill import Fill
from restrain.models.layers import Embedding
from restrain.models.transformers.attention import KeyValueCache, Sight
from restrain.models.transformers.block import build_blocks, final_norm
from restrain.models.transformers.gpt2_layout import from_gpt2, is_gpt2
from restrain.models.transformers.initial import FilledLinear
from restrain.models.transformers.positions import placed
from restrain.models.transformers.spec import LanguageSpec
from restrain.models.wish import Wish


@dataclass(frozen=True, kw_only=True)
class GptSpec(LanguageSpec):
    """Of a decoder: each token sees those before it."""

    causal: bool = True
    init: str = "gpt2"


class Gpt(nn.Module):
    """Tokens int64 [B, T] -> logits [B, T, V] of the token that follows each.

    ::

        tokens ─ tok_embed ─ (+ pos_embed) ─ blocks ─ norm ─ head (tied: tok_embed's matrix) ─ logits
    """

    def __init__(self, spec: GptSpec, wish: Wish):
        super().__init__()
        self.spec = spec
        self.tok_embed = Embedding(wish.classes, spec.width)
        self.pos_embed = Embedding(spec.context, spec.width) if spec.position == "learned" else None
        self.drop = KeyedDropout(spec.dropout) if spec.dropout else nn.Identity()
        self.blocks = nn.ModuleList(build_blocks(spec, wish))
        self.norm = final_norm(spec)
        self.head = None if spec.tied else FilledLinear(spec.width, wish.classes, False, Fill("normal", 0.02))

    def forward(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> Tensor:
        """``documents_BT`` int64: tokens see those of their own document alone. ``caches``, one a block: ``tokens_BT``
        go on from what they hold, which is extended. Raises UserError for a sequence beyond the context."""
        first = caches[0].tokens if caches else 0
        x_BTD, rotary = placed(self.tok_embed(tokens_BT), self.pos_embed, self.spec, first)
        x_BTD = self.drop(x_BTD)
        sight = Sight(rotary, None if documents_BT is None else causal_documents(documents_BT))
        for number, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, sight, caches[number]) if caches else block(x_BTD, sight)
        x_BTD = self.norm(x_BTD)
        return F.linear(x_BTD, self.tok_embed.weight) if self.head is None else self.head(x_BTD)

    def empty_caches(self) -> list[KeyValueCache]:
        """One a block, for :meth:`forward`."""
        return [KeyValueCache() for _ in self.blocks]

    def part(self, name: str) -> list[nn.Module]:
        """``stem``: the embeddings. ``head``: the last matrix, which is the token embedding's where they are tied."""
        stem = [self.tok_embed] if self.pos_embed is None else [self.tok_embed, self.pos_embed]
        return {"stem": stem, "head": [self.tok_embed if self.head is None else self.head]}[name]

    def published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under our names; those of GPT-2's published files are renamed and turned (:mod:`.gpt2_layout`)."""
        return from_gpt2(tensors) if is_gpt2(tensors) else dict(tensors)


def causal_documents(documents_BT: Tensor) -> Tensor:
    """bool [B, 1, T, T]: whether a token (row) sees another (column): of its document, and not after it."""
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    tokens = documents_BT.shape[1]
    return (same & torch.ones(tokens, tokens, dtype=torch.bool, device=same.device).tril())[:, None]


SPECS: dict[str, GptSpec] = {
    "gpt": GptSpec(),
    "gpt2": GptSpec(depth=12, width=768, heads=12, context=1024, activation="gelu_tanh"),
    "gpt2_medium": GptSpec(depth=24, width=1024, heads=16, context=1024, activation="gelu_tanh"),
    "gpt2_large": GptSpec(depth=36, width=1280, heads=20, context=1024, activation="gelu_tanh"),
    "gpt2_xl": GptSpec(depth=48, width=1600, heads=25, context=1024, activation="gelu_tanh"),
    # Every second block of the published one attends sparsely, in locally banded patterns: the same parameters.
    "gpt3_175b": GptSpec(depth=96, width=12288, heads=96, context=2048, activation="gelu_tanh"),
}


def build(spec: GptSpec, wish: Wish) -> Gpt:
    """A GPT of the given size; ``wish.classes`` is the vocabulary. UserError for wishes that it has no place for."""
    spec = spec.asked(wish)
    if spec.context < 1:
        raise UserError(f"model.shape.context is missing: the longest sequence that {wish.name} sees.")
    return Gpt(spec, wish)
