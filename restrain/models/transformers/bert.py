"""Encoder-only transformers with a masked-language head: BERT (Devlin et al. 2018, arXiv:1810.04805) and free sizes.

Shapes: B rows, T tokens, D channels of the stream, V tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.dropout import KeyedDropout
from restrain.models.fill import ZERO, Fill
from restrain.models.layers import Embedding
from restrain.models.transformers.attention import Sight
from restrain.models.transformers.block import build_blocks, final_norm
from restrain.models.transformers.initial import FilledLinear
from restrain.models.transformers.norms import norm_layer
from restrain.models.transformers.positions import placed
from restrain.models.transformers.spec import LanguageSpec
from restrain.models.wish import Wish

SEGMENTS = 2  # "sentence A" and "sentence B" of the paper's pairs


@dataclass(frozen=True, kw_only=True)
class BertSpec(LanguageSpec):
    """Of an encoder, post-norm as published."""

    order: str = "post"
    eps: float = 1e-12


class MaskedHead(nn.Module):
    """The token at each place: norm(gelu(dense(x))) times the embedding's matrix, plus a bias (the paper's code)."""

    def __init__(self, spec: BertSpec, vocabulary: int):
        super().__init__()
        self.dense = FilledLinear(spec.width, spec.width, spec.bias, Fill("normal", 0.02))
        self.norm = norm_layer(spec, spec.width)
        self.decoder = None if spec.tied else FilledLinear(spec.width, vocabulary, False, Fill("normal", 0.02))
        self.bias = nn.Parameter(torch.empty(vocabulary))

    def forward(self, x_BTD: Tensor, embedding_VD: Tensor) -> Tensor:
        x_BTD = self.norm(F.gelu(self.dense(x_BTD)))
        if self.decoder is not None:
            return self.decoder(x_BTD) + self.bias
        return F.linear(x_BTD, embedding_VD, self.bias)

    def fills(self) -> dict[str, Fill]:
        return {"bias": ZERO}


class Bert(nn.Module):
    """Tokens int64 [B, T], some of them masked -> logits [B, T, V] of what stands at each place.

    ::

        tokens ─ tok_embed + pos_embed + seg_embed ─ embed_norm ─ blocks ─ (pre-norm: norm) ─ head ─ logits
    """

    takes_padding: ClassVar[bool] = True  # in evaluation: negative tokens, which no token sees

    def __init__(self, spec: BertSpec, wish: Wish):
        super().__init__()
        self.spec = spec
        self.tok_embed = Embedding(wish.classes, spec.width)
        self.pos_embed = Embedding(spec.context, spec.width) if spec.position == "learned" else None
        self.seg_embed = Embedding(SEGMENTS, spec.width)
        self.embed_norm = norm_layer(spec, spec.width)
        self.drop = KeyedDropout(spec.dropout) if spec.dropout else nn.Identity()
        self.blocks = nn.ModuleList(build_blocks(spec, wish))
        self.norm = final_norm(spec)
        self.head = MaskedHead(spec, wish.classes)

    def forward(
        self, tokens_BT: Tensor, documents_BT: Tensor | None = None, segments_BT: Tensor | None = None
    ) -> Tensor:
        """``documents_BT`` int64: tokens see those of their own document alone. ``segments_BT`` int64: 0 or 1, the
        sentence of a pair; None: all 0. In evaluation negative tokens are padding, which the others do not see.
        Raises UserError for a sequence beyond the context."""
        if not self.training:
            is_padding = tokens_BT < 0
            documents_BT = torch.zeros_like(tokens_BT) if documents_BT is None else documents_BT
            documents_BT = documents_BT.masked_fill(is_padding, -1)
            tokens_BT = tokens_BT.clamp(min=0)
        # Segment 0 through the whole table: its other row then has a gradient, of zeros, on every rank and step.
        segments_BT = torch.zeros_like(tokens_BT) if segments_BT is None else segments_BT
        x_BTD = self.tok_embed(tokens_BT) + self.seg_embed(segments_BT)
        x_BTD, rotary = placed(x_BTD, self.pos_embed, self.spec)
        x_BTD = self.drop(self.embed_norm(x_BTD))
        mask = None if documents_BT is None else (documents_BT[:, :, None] == documents_BT[:, None, :])[:, None]
        sight = Sight(rotary, mask)
        for block in self.blocks:
            x_BTD = block(x_BTD, sight)
        return self.head(self.norm(x_BTD), self.tok_embed.weight)

    def part(self, name: str) -> list[nn.Module]:
        """``stem``: the embeddings and their norm. ``head``: the masked-language head without the tied matrix."""
        tables = (
            [self.tok_embed, self.seg_embed]
            if self.pos_embed is None
            else [
                self.tok_embed,
                self.pos_embed,
                self.seg_embed,
            ]
        )
        return {"stem": [*tables, self.embed_norm], "head": [self.head]}[name]


SPECS: dict[str, BertSpec] = {
    "bert": BertSpec(),
    "bert_base": BertSpec(depth=12, width=768, heads=12, context=512),
    "bert_large": BertSpec(depth=24, width=1024, heads=16, context=512),
}


def build(spec: BertSpec, wish: Wish) -> Bert:
    """A BERT of the given size; ``wish.classes`` is the vocabulary. UserError for wishes that it has no place for."""
    spec = spec.asked(wish)
    if spec.context < 1:
        raise UserError(f"model.shape.context is missing: the longest sequence that {wish.name} sees.")
    return Bert(spec, wish)
