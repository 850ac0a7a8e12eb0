"""What can be said of a residual stream and of the branch that joins it, as numbers on the device.

Shapes: B rows, C channels, H and W pixels, T tokens, D features. x is the stream [B, C, H, W], [B, T, D] or [B, D],
f the branch, y the stream behind the join. Half precision is read in fp32, as sums over a whole tensor overflow it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in fp32, or in fp64 where it is that already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm over all elements, of shape []."""
    return torch.linalg.vector_norm(wide(x))


def cosine(x: Tensor, f: Tensor, norms: Tensor) -> Tensor:
    """Of the angle between two tensors, as vectors; 0 where one is zero. ``norms``: the product of theirs."""
    return (wide(x) * wide(f)).sum() / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def participation_ratio(x_BTD: Tensor) -> Tensor:
    """How many directions the tokens of a sequence use: (sum of s^2)^2 / sum of s^4 over the singular values s of its
    [T, D] matrix, averaged over the sequences. From 1 (all tokens on one line) to min(T, D).

    The tokens are not centred, so that their collapse onto one of them (Dong et al. 2021, arXiv:2103.03404) is rank 1.
    The s^2 are eigenvalues of the Gram matrix, whose trace and Frobenius norm need no decomposition.
    """
    x_BTD = wide(x_BTD)
    with torch.autocast(x_BTD.device.type, enabled=False):
        other = x_BTD.transpose(1, 2)
        gram = x_BTD @ other if x_BTD.shape[1] <= x_BTD.shape[2] else other @ x_BTD
    trace = gram.diagonal(dim1=1, dim2=2).sum(-1)
    return (trace**2 / gram.square().sum((1, 2))).mean()


def dead_units(y: Tensor) -> tuple[Tensor, int]:
    """(number of units of a ReLU's output that are zero everywhere, number of units).

    A unit is a channel of [B, C, H, W] and a feature of [B, ..., D].
    """
    units = 1 if y.dim() == 4 else y.dim() - 1
    other = [dim for dim in range(y.dim()) if dim != units]
    return (y.amax(other) == 0).sum(), y.shape[units]
