"""Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2) on torch's fused kernels.

Shapes: B rows, T tokens, S tokens that are seen, D channels of the stream, H heads, K channels of a head.

Attention weights are never dropped: the fused kernels would draw from the device's generator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.models.transformers.initial import FilledLinear
from restrain.models.transformers.norms import norm_layer
from restrain.models.transformers.positions import rotate
from restrain.models.transformers.spec import TransformerSpec


class Sight(NamedTuple):
    """What the tokens of a batch see, beside their own place in it; the same for all blocks of a model.

    ``rotary`` [2, T, K/2]: :func:`.positions.rotary_table`. ``mask`` bool [B, 1, T, S]: True where a token sees
    another; it then says all, causality too.
    """

    rotary: Tensor | None = None
    mask: Tensor | None = None

    def of_rows(self, rows: Tensor | None) -> Sight:
        """That of some rows of the batch; None: of all."""
        if rows is None or self.mask is None:
            return self
        return self._replace(mask=self.mask.index_select(0, rows))


OPEN = Sight()  # every token sees all others, or all before it where attention is causal


class KeyValueCache:
    """Keys and values [B, H, S, K] of the tokens that one block has seen, so that each is computed once."""

    def __init__(self) -> None:
        self.held: tuple[Tensor, Tensor] | None = None

    @property
    def tokens(self) -> int:
        return 0 if self.held is None else self.held[0].shape[2]

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, those of the newest tokens last."""
        if self.held is not None:
            k_BHTK, v_BHTK = torch.cat((self.held[0], k_BHTK), 2), torch.cat((self.held[1], v_BHTK), 2)
        self.held = k_BHTK, v_BHTK
        return self.held


class Attention(nn.Module):
    """proj(softmax(q k^T / sqrt(K)) v), with the norm of QK-norm (Henry et al. 2020, arXiv:2010.04245) and rotations.

    ::

        x ─ qkv ─┬─ q ─ q_norm ─ rotate ─┐
                 ├─ k ─ k_norm ─ rotate ─┴─ softmax ─┐
                 └─ v ───────────────────────────────┴─ proj ─ y
    """

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        width, bias = spec.width, spec.bias
        self.heads, self.causal = spec.heads, spec.causal
        fill, of_values = spec.fill("qk", width, width), spec.fill("v", width, width)
        # One matrix product is faster than two; but a tensor is filled by one distribution, and DeepNorm has two here.
        self.qkv = FilledLinear(width, 3 * width, bias, fill) if fill == of_values else None
        self.qk = None if self.qkv else FilledLinear(width, 2 * width, bias, fill)
        self.v = None if self.qkv else FilledLinear(width, width, bias, of_values)
        head = width // spec.heads
        self.q_norm = norm_layer(spec, head) if spec.qk_norm else nn.Identity()
        self.k_norm = norm_layer(spec, head) if spec.qk_norm else nn.Identity()
        self.proj = FilledLinear(width, width, bias, spec.fill("out", width, width))

    def forward(self, x_BTD: Tensor, sight: Sight = OPEN, cache: KeyValueCache | None = None) -> Tensor:
        rows, tokens, _ = x_BTD.shape
        qkv = self.qkv(x_BTD) if self.qkv is not None else self._two_products(x_BTD)
        q_BHTK, k_BHSK, v_BHSK = (part.view(rows, tokens, self.heads, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
        q_BHTK, k_BHSK = self.q_norm(q_BHTK), self.k_norm(k_BHSK)
        if sight.rotary is not None:
            q_BHTK, k_BHSK = rotate(q_BHTK, sight.rotary), rotate(k_BHSK, sight.rotary)
        seen, mask = tokens, sight.mask
        if cache is not None:
            k_BHSK, v_BHSK = cache.extend(k_BHSK, v_BHSK)
            seen = k_BHSK.shape[2]
        if mask is None and self.causal and 1 < tokens < seen:
            # torch's is_causal lets the first of the T queries see the first key, not all that came before it.
            mask = torch.ones(tokens, seen, dtype=torch.bool, device=x_BTD.device).tril(seen - tokens)
        causal = self.causal and mask is None and tokens > 1
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=causal)
        return self.proj(y_BHTK.transpose(1, 2).reshape(rows, tokens, -1))

    def _two_products(self, x_BTD: Tensor) -> Tensor:
        assert self.qk is not None
        assert self.v is not None
        return torch.cat((self.qk(x_BTD), self.v(x_BTD)), -1)
