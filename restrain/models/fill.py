"""How a tensor is filled at initialisation; what draws it is init.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Fill:
    """``scale``: the constant, the normal's standard deviation, or the uniform's half-width."""

    kind: Literal["constant", "normal", "uniform"]
    scale: float


ZERO, ONE = Fill("constant", 0.0), Fill("constant", 1.0)


def he_normal(weight: Tensor) -> Fill:
    """Normal with variance 2 / fan_out (He et al. 2015, arXiv:1502.01852, equation 14), as torchvision and timm."""
    return Fill("normal", math.sqrt(2.0 / (weight.shape[0] * math.prod(weight.shape[2:]))))


def fan_in_uniform(fan_in: int) -> Fill:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default of a linear layer, weight and bias."""
    return Fill("uniform", 1.0 / math.sqrt(fan_in))
