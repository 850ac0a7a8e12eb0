"""Highway networks: LSTMs with forget gates, unrolled in depth (Srivastava, Greff and Schmidhuber 2015).

Shapes: B rows, C channels or units, H and W pixels, K classes.

arXiv:1505.00387 and, in full, arXiv:1507.06228 ("Training very deep networks"). A layer is y = t(x) h(x) + (1 - t(x))
x: a block whose branch h is one layer with its activation and whose join is ``gate``, with a bias of -1 to -4 so that
it carries at first. With the join ``none`` it is the plain net that the papers compare with, with ``add`` a residual
one.

Published: the fully connected nets (a plain layer, 9 to 99 highway layers of 50 units, softmax); that convolutional
ones gate with the kernel of the branch, and change their width by plain layers; the convolutions of ``highway_19``,
which are those of FitNet 4 (Romero et al. 2014, arXiv:1412.6550), with about 2.3 M parameters; of ``highway_32`` the
number of layers and of parameters, about 1.25 M. Not published, and chosen here: the widths of ``highway_32`` (10
layers each of 32, 48 and 64 channels have 1.25 M parameters), a 1x1 convolution and a global average before the last
layer of both (the papers say it of some of theirs), and no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock
from restrain.models.fill import ZERO, Fill
from restrain.models.layers import Conv2d, Linear
from restrain.models.residual import Gate, GateJoin
from restrain.models.wish import Wish

GAIN = {"relu": 2.0, "tanh": 1.0}  # variance of a weight times its fan-in: He et al. 2015; LeCun et al. 1998
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh}


class Dense(Linear):
    """A linear layer and its activation. Drawn so that a plain stack of them keeps the signal's variance."""

    def __init__(self, inputs: int, outputs: int, activation: str):
        super().__init__(inputs, outputs)
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](super().forward(input))

    def fills(self) -> dict[str, Fill]:
        return {"weight": _scaled(self.activation, self.in_features), "bias": ZERO}


class ConvLayer(Conv2d):
    """A convolution with bias, and ReLU; drawn as :class:`Dense`."""

    def __init__(self, in_chans: int, out_chans: int, kernel: int = 3):
        super().__init__(in_chans, out_chans, kernel, bias=True)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))

    def fills(self) -> dict[str, Fill]:
        return {"weight": _scaled("relu", self.in_channels * math.prod(self.kernel_size)), "bias": ZERO}


def _scaled(activation: str, fan_in: int) -> Fill:
    return Fill("normal", math.sqrt(GAIN[activation] / fan_in))


class HighwayLayer(ResidualBlock):
    """One layer around which a gate leads.

    ::

        x ─┬─ layer ─ activation ─ join ─ y
           └─────────────────────────┘
    """

    def __init__(self, layer: Dense | ConvLayer, chans: int, rate: float, wish: Wish):
        super().__init__()
        self.layer = layer
        self.join = wish.join.build(chans, rate, tokens=isinstance(layer, Dense))
        if isinstance(layer, ConvLayer) and isinstance(self.join, GateJoin):  # arXiv:1507.06228, section 2
            self.join.gate = Gate(chans, self.join.gate.opening, tokens=False, kernel=layer.kernel_size[0])

    def block_forward(self, x: Tensor) -> Tensor:
        return self.join.around(x, self.layer)

    def skip_forward(self, x: Tensor) -> Tensor:
        return self.join.without(x)


@dataclass(frozen=True)
class MlpSpec:
    """A fully connected highway network; depth and width are the recipe's."""

    activation: str


class HighwayMlp(nn.Module):
    """pixels [B, C H W] ─ plain layer ─ highway layers ─ linear head ─ logits [B, K]."""

    def __init__(self, spec: MlpSpec, pixels: int, width: int, depth: int, wish: Wish):
        super().__init__()
        self.stem = Dense(pixels, width, spec.activation)
        rates = wish.rates(depth - 1)
        self.layers = nn.Sequential(
            *(HighwayLayer(Dense(width, width, spec.activation), width, rate, wish) for rate in rates)
        )
        self.head = Linear(width, wish.classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x_BCHW.flatten(1))))

    def part(self, name: str) -> list[nn.Module | nn.Parameter]:
        """The modules of ``stem`` or ``head``, for freezing and the like."""
        return {"stem": [self.stem], "head": [self.head]}[name]


@dataclass(frozen=True)
class ConvSpec:
    """A convolutional highway network: the widths of the convolutions of each stage. A pooling ends a stage."""

    stages: tuple[tuple[int, ...], ...]


class HighwayNet(nn.Module):
    """stages ─ 1x1 convolution ─ global average ─ linear head ─ logits [B, K].

    ::

        stage: (3x3 plain where the width changes, else 3x3 highway) x n ─ maxpool 2x2, but for the last stage
    """

    def __init__(self, spec: ConvSpec, wish: Wish):
        super().__init__()
        chans, stages = wish.in_chans, []
        rates = iter(wish.rates(_highway_layers(spec, wish.in_chans)))
        for widths in spec.stages:
            layers: list[nn.Module] = []
            for width in widths:
                layer = ConvLayer(chans, width)
                layers.append(layer if width != chans else HighwayLayer(layer, width, next(rates), wish))
                chans = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.last = ConvLayer(chans, chans, kernel=1)
        self.head = Linear(chans, wish.classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for number, stage in enumerate(self.stages):
            x_BCHW = stage(x_BCHW if number == 0 else F.max_pool2d(x_BCHW, 2))
        return self.head(self.last(x_BCHW).mean((2, 3)))

    def part(self, name: str) -> list[nn.Module | nn.Parameter]:
        """The modules of ``stem`` or ``head``, for freezing and the like."""
        first = self.stages[0]
        assert isinstance(first, nn.Sequential)
        return {"stem": [first[0]], "head": [self.head]}[name]


def _highway_layers(spec: ConvSpec, in_chans: int) -> int:
    widths = [in_chans, *(width for stage in spec.stages for width in stage)]
    return sum(before == after for before, after in pairwise(widths))


SPECS: dict[str, MlpSpec | ConvSpec] = {
    "highway_mlp": MlpSpec("relu"),
    "highway_mlp_tanh": MlpSpec("tanh"),
    "highway_19": ConvSpec(((32,) * 3 + (48,) * 2, (80,) * 6, (128,) * 6)),
    "highway_32": ConvSpec(((32,) * 10, (48,) * 10, (64,) * 10)),
}
WIDTH = 50  # of the papers' fully connected nets
DEPTHS = range(2, 1001)


def build(spec: MlpSpec | ConvSpec, wish: Wish) -> HighwayMlp | HighwayNet:
    """A highway network. ``shape.depth`` of a fully connected one counts all hidden layers, the plain first one too."""
    wish.refuse_join("a highway network", "concat")
    if wish.options.get("zero_init") is True:
        raise UserError(
            f"model.zero_init is true, but the branches of {wish.name} end in an activation: one that starts at zero "
            f"stays there. Use auto, and a negative model.join.bias, which carries at first."
        )
    if isinstance(spec, ConvSpec):
        return HighwayNet(spec, wish)
    depth = wish.size("depth")
    if depth not in DEPTHS:
        raise UserError(f"model.shape.depth is {depth}: {wish.name} has from 2 to {DEPTHS[-1]} hidden layers.")
    return HighwayMlp(spec, wish.pixels(), wish.size("width", WIDTH), depth, wish)
