"""BatchNorm of a group whose rows lie on several ranks: statistics and their gradients are shared among these alone.

Shapes: k ranks, b rows on each, N values a channel in the whole group, C channels, H and W pixels.

Each rank of a group must run the same norms in the same order, forward, recomputed and backward; all ranks of a run do,
since they run one model and skip the same blocks. Each norm then has one small exchange forward and one backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Span:
    """The ranks over which a group lies, by the process group of them alone (gloo or NCCL)."""

    def __init__(self, process_group: dist.ProcessGroup):
        self.process_group, self.size = process_group, process_group.size()

    def __deepcopy__(self, memo: dict[int, Any]) -> Span:
        return self  # a copy of a model talks to the same ranks

    def batch_norm(self, x_BCHW: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        """This rank's rows normalised over the group, y [b, C, H, W]; the group's mean and unbiased variance [2, C].

        The statistics are float32 or wider, equal on all of the group's ranks to the last bit, and have no gradient.
        """
        return _BatchNorm.apply(x_BCHW, weight, bias, eps, self)  # pyright: ignore[reportReturnType]

    def gather(self, x: Tensor) -> Tensor:
        """[k, ...]: ``x`` of each rank, which has the same shape on all, in their order."""
        out = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous(), group=self.process_group)
        return out.view(self.size, *x.shape)


def own_statistics(x_BCHW: Tensor) -> Tensor:
    """Mean and biased variance of the rows here, [2, C], in float32 or wider."""
    channels = x_BCHW.shape[1]
    count = x_BCHW.numel() // channels
    wide = torch.promote_types(x_BCHW.dtype, torch.float32)
    found = torch.zeros(2, channels, dtype=wide, device=x_BCHW.device)
    if count == 1:
        found[0] = x_BCHW.reshape(channels)
        return found
    # The kernel of a training BatchNorm, at momentum 1: ten times as fast on a CPU as var_mean of channels-last images,
    # and it sums 16-bit values in float32 without a copy.
    F.batch_norm(x_BCHW, found[0], found[1], None, None, True, 1.0)
    found[1] *= (count - 1) / count
    return found


def combined(statistics_k2C: Tensor) -> Tensor:
    """Mean and biased variance [2, C] of all values, from those of k parts with equally many.

    The squares of the means' differences are added, never a difference of squares taken (Chan, Golub and LeVeque 1983).
    """
    means_kC, variances_kC = statistics_k2C.unbind(1)
    mean_C = means_kC.mean(0)
    return torch.stack([mean_C, variances_kC.mean(0) + (means_kC - mean_C).square().mean(0)])


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, span: Span
    ) -> tuple[Tensor, Tensor]:
        statistics_2C = combined(span.gather(own_statistics(x_BCHW)))
        mean_C, variance_C = statistics_2C.unbind()
        y_BCHW = F.batch_norm(x_BCHW, mean_C, variance_C, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x_BCHW, weight, mean_C, variance_C)
        ctx.eps, ctx.span = eps, span
        ctx.values = x_BCHW.numel() // x_BCHW.shape[1] * span.size
        unbiased = variance_C * (ctx.values / max(1, ctx.values - 1))
        found = torch.stack([mean_C, unbiased])
        ctx.mark_non_differentiable(found)
        return y_BCHW, found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BCHW: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x_BCHW, weight, mean_C, variance_C = ctx.saved_tensors
        # With constant statistics: dx, sum of dy * normalised x, and sum of dy, of the rows here.
        dx_BCHW, dweight_C, dbias_C = torch.ops.aten.native_batch_norm_backward(
            dy_BCHW, x_BCHW, weight, mean_C, variance_C, None, None, False, ctx.eps, [True, True, True]
        )
        sums_2C = torch.stack([dweight_C, dbias_C]).to(mean_C.dtype)
        dist.all_reduce(sums_2C, group=ctx.span.process_group)
        # What the statistics add: -(sum(dy x') x' + sum(dy)) / N times the scale, with x' = normalised x.
        scale_C = torch.rsqrt(variance_C + ctx.eps) / -ctx.values
        if weight is not None:
            scale_C = scale_C * weight
        to_x_C, to_all_C = (sums_2C * scale_C).unbind()
        dx_BCHW += F.batch_norm(x_BCHW, mean_C, variance_C, to_x_C, to_all_C, False, 0.0, ctx.eps)
        needs = ctx.needs_input_grad
        return dx_BCHW, dweight_C if needs[1] else None, dbias_C if needs[2] else None, None, None
