"""Initial weights of a transformer's projections: named rules, one a source.

A rule is a function of the projection's part in its block, its fans and the number of blocks. Parts: ``qk`` queries and
keys, ``v`` values, ``in`` into the MLP, ``out`` what ends a branch (the last projection of attention and of the MLP).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from restrain.models.fill import ZERO, Fill
from restrain.models.layers import Linear

Part = Literal["qk", "v", "in", "out"]
Rule = Callable[[Part, int, int, int], Fill]


class FilledLinear(Linear):
    """A linear layer that knows how its weight is filled; its bias starts at zero."""

    def __init__(self, in_features: int, out_features: int, bias: bool, fill: Fill):
        super().__init__(in_features, out_features, bias)
        self.fill = fill

    def fills(self) -> dict[str, Fill]:
        return {"weight": self.fill, "bias": ZERO}


def normal(part: Part, fan_in: int, fan_out: int, blocks: int) -> Fill:
    """N(0, 0.02^2) for all: BERT (Devlin et al. 2018, arXiv:1810.04805, its code) and timm's ViT.

    Both cut the normal's tails, BERT at 2 standard deviations and timm at 100: the first is left out here.
    """
    return Fill("normal", 0.02)


def gpt2(part: Part, fan_in: int, fan_out: int, blocks: int) -> Fill:
    """N(0, 0.02^2), and what ends a branch scaled by 1 / sqrt(2 N) for the 2 N branches of N blocks.

    Radford et al. 2019 (GPT-2), section 2.3: without it the variance of the stream grows with every branch.
    """
    return Fill("normal", 0.02 / math.sqrt(2 * blocks) if part == "out" else 0.02)


def deepnorm(part: Part, fan_in: int, fan_out: int, blocks: int) -> Fill:
    """Xavier's normal with gain beta, and 1 for queries and keys (Wang et al. 2022, arXiv:2203.00555, figure 2)."""
    gain = 1.0 if part == "qk" else deepnorm_constants(blocks)[1]
    return Fill("normal", gain * math.sqrt(2.0 / (fan_in + fan_out)))


def deepnorm_constants(blocks: int) -> tuple[float, float]:
    """alpha = (2 N)^(1/4) on the shortcut, beta = (8 N)^(-1/4) on the initial weights.

    Of an encoder or a decoder alone with N blocks (Wang et al. 2022, table of figure 2).
    """
    return (2 * blocks) ** 0.25, (8 * blocks) ** -0.25


RULES: dict[str, Rule] = {"normal": normal, "gpt2": gpt2, "deepnorm": deepnorm}
