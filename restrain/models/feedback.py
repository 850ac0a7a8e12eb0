"""Which matrix sends the error down: the weight itself, its signs, or one that is fixed and random.

Shapes: B rows, C channels in, D channels out, H and W pixels, I inputs, O outputs of a linear layer.

The backward pass of ``y = W x`` does two things with an arriving error e = dE/dy: it makes the weight's gradient
(e x^T) and it sends W^T e down. A brain has no way to know W at the second place (the weight transport problem), so the
second matrix may be another one, F:

==========  =====================  =================================================================================
``exact``   F = W                  backpropagation
``sign``    F = s sign(W)          sign-symmetry: Liao, Leibo and Poggio 2016 (arXiv:1510.05067), "uniform
                                   sign-concordant feedback"; Xiao et al. 2018 (arXiv:1811.03567) on ImageNet.
                                   s = ||W|| / sqrt(number of elements), so ||F|| = ||W||
``random``  F fixed, of W's own    feedback alignment: Lillicrap et al. 2016 (Nature Communications 7, 13276)
            distribution at start
==========  =====================  =================================================================================

Weight gradients are exact for the error that arrives. Norms, activations and joins (a gate's matrix too) are
differentiated as they are, and so is a head that is tied to an embedding: what the residual stream carries down through
an identity is exact in all three.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from restrain.errors import UserError, nearest
from restrain.models.blocks import residual_blocks

Feedback = Literal["exact", "sign", "random"]
FEEDBACKS = ("exact", "sign", "random")
BUFFER = "feedback"  # the random matrix: not persistent, filled by init.py as its layer's weight is, under its own name


def signs(weight: Tensor) -> Tensor:
    """s sign(W), of W's Frobenius norm where no element of W is 0."""
    return weight.sign() * weight.square().mean().sqrt()


class _Conv(torch.autograd.Function):
    """A convolution [B, C, H, W] -> [B, D, H', W'] whose input's gradient is made with another kernel [D, C, k, k].

    ``feedback`` None: the signs of the weight, which are made in the backward pass, so nothing more is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight: Tensor, feedback: Tensor | None, stride, padding) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight if feedback is None else feedback)
        ctx.signs, ctx.stride, ctx.padding = feedback is None, stride, padding
        return F.conv2d(x_BCHW, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, kernel = ctx.saved_tensors
        kernel = signs(kernel) if ctx.signs else kernel
        # Torch makes the input's gradient of the error and the kernel, the kernel's of the error and the input.
        down, own, _ = torch.ops.aten.convolution_backward(
            *(errors[0], x_BCHW, kernel, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1),
            (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False),
        )
        return down, own, None, None, None


class _Linear(torch.autograd.Function):
    """x [..., I] -> x W^T [..., O] whose input's gradient is made with another matrix [O, I]; as :class:`_Conv`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, feedback: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight if feedback is None else feedback)
        ctx.signs = feedback is None
        return F.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        down = errors[0] @ (signs(matrix) if ctx.signs else matrix) if ctx.needs_input_grad[0] else None
        own = errors[0].flatten(0, -2).T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return down, own, None


class Fed(nn.Module):
    """A layer with a ``weight`` that may send the error down through another matrix; layers.py's two are."""

    feedback_kind: Feedback = "exact"

    @property
    def is_exact(self) -> bool:
        """Whether torch's own operation serves: by the recipe, or because no gradient is made (evaluation, export)."""
        return self.feedback_kind == "exact" or not torch.is_grad_enabled()

    def matrix_down(self) -> Tensor | None:
        """The fixed matrix of ``random``; None for ``sign``, which is made of the weight."""
        return getattr(self, BUFFER) if self.feedback_kind == "random" else None


def set_feedback(model: nn.Module, kind: str) -> None:
    """Let every convolution and linear layer of ``model`` send the error down by ``kind``, in place.

    Call it before weights are made: ``random`` gives each weight a buffer that init.py fills. ``exact`` leaves the
    model as it is. Raises UserError for a kind that does not exist, or where a network's matrices are in no such layer.
    """
    if kind not in FEEDBACKS:
        raise UserError(f"model.feedback is {kind!r}; it is {', '.join(FEEDBACKS)}.{nearest(kind, FEEDBACKS)}")
    if kind == "exact":
        return
    for name, block in residual_blocks(model):
        own = [key for key, parameter in block.named_parameters(recurse=False) if parameter.ndim == 2]
        if own:  # a recurrent cell's
            raise UserError(
                f"model.feedback is {kind}, but {name} multiplies by matrices of its own ({', '.join(own)}), not by a "
                f"convolution or a linear layer: it would be exact there. Use exact."
            )
    layers = [module for module in model.modules() if isinstance(module, Fed)]
    if not layers:
        raise UserError(
            f"model.feedback is {kind}, but {type(model).__name__} has no convolution or linear layer of ours."
        )
    for layer in layers:
        layer.feedback_kind = kind  # pyright: ignore[reportAttributeAccessIssue]
        if kind == "random":
            layer.register_buffer(
                BUFFER, torch.empty_like(layer.get_parameter("weight"), requires_grad=False), persistent=False
            )
    share_matrices(model)


def share_matrices(model: nn.Module) -> None:
    """Let layers that share a weight share its random matrix, in place: an unrolled step has none of its own.

    Torch keeps parameters one when it converts or moves a model, and buffers not.
    """
    first: dict[int, Tensor] = {}
    for layer in model.modules():
        if isinstance(layer, Fed) and BUFFER in layer._buffers:
            matrix = first.setdefault(id(layer.get_parameter("weight")), layer.get_buffer(BUFFER))
            setattr(layer, BUFFER, matrix)


def conv2d(layer: nn.Conv2d, x_BCHW: Tensor, weight: Tensor, feedback: Tensor | None, bias: Tensor | None) -> Tensor:
    """``layer``'s convolution; the error goes down through ``feedback``, or the signs of the weight for None."""
    x_BCHW, weight, feedback = _cast(x_BCHW, weight, feedback)
    y_BCHW = _Conv.apply(x_BCHW, weight, feedback, layer.stride, layer.padding)
    return y_BCHW if bias is None else y_BCHW + bias.to(y_BCHW.dtype).view(-1, 1, 1)


def linear(x: Tensor, weight: Tensor, feedback: Tensor | None, bias: Tensor | None) -> Tensor:
    """x [..., I] -> [..., O]; the error goes down through ``feedback``, or the signs of the weight for None."""
    x, weight, feedback = _cast(x, weight, feedback)
    y = _Linear.apply(x, weight, feedback)
    return y if bias is None else y + bias.to(y.dtype)


def _cast(x: Tensor, weight: Tensor, feedback: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast does before torch's own operations: inside of a function of ours it would not see the backward."""
    kind = x.device.type
    # Counting runs on the meta device, which has no autocast and does not know the question.
    if x.is_meta or not torch.is_autocast_enabled(kind) or torch.float64 in (x.dtype, weight.dtype):
        return x, weight, feedback
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if feedback is None else feedback.to(dtype)
