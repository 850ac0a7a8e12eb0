"""Layers whose constructors draw nothing: init.py fills them.

Shapes: B rows, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.models import feedback
from restrain.models.feedback import Fed


class Conv2d(Fed, nn.Conv2d):
    """A convolution that keeps the size but for its stride; without bias unless asked for."""

    def __init__(
        self, in_chans: int, out_chans: int, kernel: int, stride: int = 1, *, padding: int | None = None, bias=False
    ):
        super().__init__(in_chans, out_chans, kernel, stride, kernel // 2 if padding is None else padding, bias=bias)

    def reset_parameters(self) -> None:
        pass

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_exact:
            return super()._conv_forward(input, weight, bias)
        return feedback.conv2d(self, input, weight, self.matrix_down(), bias)


class BlurConv2d(Conv2d):
    """A strided convolution behind a blur with the binomial 3x3 filter [1 2 1] x [1 2 1] / 16, zeros around.

    Zhang 2019 (arXiv:1904.11486) in the form of FFCV's and Composer's ``BlurConv2d``: the blur comes first, at stride
    1, so what the stride samples holds no frequency above its half.
    """

    def forward(self, input: Tensor) -> Tensor:
        chans = input.shape[1]
        # Two passes of [1 2 1] would be cheaper on paper; one depthwise convolution is faster. Made here and not kept
        # as a buffer: state-dict names stay those of the plain convolution.
        line = torch.tensor([0.25, 0.5, 0.25], dtype=input.dtype, device=input.device)
        filter_ = (line[:, None] * line).expand(chans, 1, 3, 3)
        return super().forward(F.conv2d(input, filter_, padding=1, groups=chans))


class Linear(Fed, nn.Linear):
    """A linear layer. ``product``: (input, weight, bias) -> output; another number format may have its own."""

    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = staticmethod(F.linear)

    def reset_parameters(self) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if self.is_exact:
            return self.product(input, self.weight, self.bias)
        return feedback.linear(input, self.weight, self.matrix_down(), self.bias)


class Embedding(nn.Embedding):
    """A table of vectors, one a token."""

    def reset_parameters(self) -> None:
        pass
