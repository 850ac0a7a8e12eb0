"""Where a token stands: sinusoids and rotations, computed from shapes wherever they are needed.

Shapes: B rows, T tokens, H heads, K channels of a head, D channels of the stream.

Tables are computed in float32 in the forward and not kept as buffers, so a model on the meta device has nothing to fill
and no checkpoint holds them. (A float64 model, as parity tests use, computes them in float64.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.transformers.spec import LanguageSpec


def placed(
    x_BTD: Tensor, learned: nn.Embedding | None, spec: LanguageSpec, first: int = 0
) -> tuple[Tensor, Tensor | None]:
    """(tokens that know where they stand, from position ``first`` on, and the table of :func:`rotary_table` where
    attention turns them instead), as ``spec.position`` says.

    Raises UserError for tokens beyond the context.
    """
    tokens = x_BTD.shape[1]
    if first + tokens > spec.context:
        raise UserError(
            f"A sequence of {first + tokens} tokens does not fit the model, whose positions end at {spec.context} "
            f"(model.shape.context). Shorten the sequences of the data, or build the model with "
            f"model.shape.context={first + tokens}."
        )
    if learned is not None:
        return x_BTD + learned.weight[first : first + tokens], None
    if spec.position == "sincos":
        return x_BTD + sincos_1d(first, tokens, spec.width, x_BTD), None
    if spec.position == "rotary":
        return x_BTD, rotary_table(first, tokens, spec.width // spec.heads, x_BTD)
    return x_BTD, None


def _precise(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def sincos_1d(first: int, tokens: int, width: int, like: Tensor) -> Tensor:
    """[tokens, width] for the positions from ``first`` on: sines in the even channels, cosines in the odd ones.

    Vaswani et al. 2017 (arXiv:1706.03762), section 3.5; ``width`` is even.
    """
    place_T = torch.arange(first, first + tokens, device=like.device, dtype=_precise(like))
    rate_K = 10_000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=place_T.dtype) / width)
    angle_TK = place_T[:, None] * rate_K
    return torch.stack((angle_TK.sin(), angle_TK.cos()), -1).flatten(1).to(like.dtype)


def sincos_2d(height: int, width: int, chans: int, like: Tensor) -> Tensor:
    """[height x width, chans], row by row: sines and cosines of x, then of y; ``chans`` is a multiple of 4.

    MoCo v3's table (Chen et al. 2021, arXiv:2104.02057), which Beyer et al. 2022 (arXiv:2205.01580) train ViT-S with.
    """
    step = torch.arange(chans // 4, device=like.device, dtype=_precise(like))
    rate = 10_000.0 ** (-step / max(1, chans // 4 - 1))
    y = torch.arange(height, device=like.device, dtype=rate.dtype)[:, None] * rate
    x = torch.arange(width, device=like.device, dtype=rate.dtype)[:, None] * rate
    y, x = y.repeat_interleave(width, 0), x.repeat(height, 1)
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), 1).to(like.dtype)


def rotary_table(first: int, tokens: int, head: int, like: Tensor) -> Tensor:
    """[2, tokens, head / 2]: cosine and sine of each token's angles (Su et al. 2021, arXiv:2104.09864, equation 15)."""
    place_T = torch.arange(first, first + tokens, device=like.device, dtype=_precise(like))
    rate_K = 10_000.0 ** (-torch.arange(0, head, 2, device=like.device, dtype=place_T.dtype) / head)
    angle_TK = place_T[:, None] * rate_K
    return torch.stack((angle_TK.cos(), angle_TK.sin())).to(like.dtype)


def rotate(x_BHTK: Tensor, table_2TK: Tensor) -> Tensor:
    """Each pair of channels (k, k + K/2) turned by its token's angle; scores then depend on distances alone.

    The paper pairs neighbours (2k, 2k + 1): the same up to an order of the channels, which the projections learn.
    """
    cos, sin = table_2TK.to(x_BHTK.dtype).unbind()
    first, second = x_BHTK.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
