"""Products of linear layers in float8, each row with a scale of its own.

Micikevicius et al. 2022 (arXiv:2209.05433): numbers of 4 exponent and 3 mantissa bits (E4M3, largest 448), which a
scale brings into their range. Scales are of rows, of inputs and gradients as of weights, and the weight's gradient is
computed in the inputs' own format: so what comes of a row does not depend on the rows that are computed with it, and a
step not on how it is cut into micro-batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from restrain.models.blocks import residual_blocks
from restrain.models.layers import Linear

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max
MULTIPLE = 16  # what a GPU asks of the inputs and outputs of a product


def layers(model: nn.Module) -> list[Linear]:
    """Linear layers of the residual blocks whose sizes allow it. Stem and head are not among them."""
    return [
        layer
        for _, block in residual_blocks(model)
        for layer in block.modules()
        if isinstance(layer, Linear) and not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE)
    ]


def apply(model: nn.Module) -> None:
    """Let these layers multiply in float8."""
    for layer in layers(model):
        layer.product = product


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``: [..., K], [N, K], [N] -> [..., N], in autocast's format where it is on, else in x's."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    y = _Product.apply(x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype)).view(*x.shape[:-1], -1)
    return y if bias is None else y + bias.to(dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        of_x = _multiply(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = gradient.t() @ x if ctx.needs_input_grad[1] else None
        return of_x, of_weight


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``: [M, K], [N, K] -> [M, N]."""
    (left, by_row), (right, by_output) = scaled(x), scaled(weight)
    multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    return multiply(left, right.t(), scale_a=by_row, scale_b=by_output.t(), out_dtype=x.dtype)


def scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in float8, contiguous, and what each is to be multiplied by: [M, K] -> [M, K], [M, 1] (float32).

    What is not finite stays so, for the guard to see.
    """
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (x.float() / scale).to(FORMAT).contiguous(), scale
