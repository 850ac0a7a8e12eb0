"""DenseNets (Huang et al. 2016, arXiv:1608.06993): each layer's branch is appended to the stream, not added to it.

Shapes: B rows, C channels, H and W pixels, K classes; k is the growth rate, the channels that a layer appends.

ImageNet sizes are DenseNet-BC (table 1) with timm's names, so its weights load. CIFAR sizes are section 4.2: three
dense blocks of equal length, without or with bottleneck and compression (BC). Each dense layer is a residual block of
its own, whose join is ``concat``; a transition stands between two dense blocks and belongs to none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock
from restrain.models.convnets.resnet import VARIANTS
from restrain.models.layers import Conv2d, Linear
from restrain.models.norm import GroupedBatchNorm2d
from restrain.models.wish import Wish

BOTTLENECK = 4  # channels of a bottleneck's 3x3 convolution's input, in growth rates (section 3)


class DenseLayer(ResidualBlock):
    """norm ─ relu ─ conv, once or, with a bottleneck, twice; the result is appended.

    ::

        x ─┬─ norm1 ─ relu ─ conv1 1x1 to 4k ─ norm2 ─ relu ─ conv2 3x3 to k ─ join ─ [x, f(x)]
           └──────────────────────────────────────────────────────────────────┘
        without a bottleneck: norm1 ─ relu ─ conv1 3x3 to k
    """

    def __init__(self, chans: int, spec: DenseNetSpec, wish: Wish, rate: float):
        super().__init__()
        self.growth = spec.growth
        self.norm1 = GroupedBatchNorm2d(chans)
        self.act1 = nn.ReLU(inplace=True)
        if spec.compact:
            inner = BOTTLENECK * spec.growth
            self.conv1 = Conv2d(chans, inner, 1)
            self.norm2 = GroupedBatchNorm2d(inner)
            self.act2 = nn.ReLU(inplace=True)
            self.conv2 = Conv2d(inner, spec.growth, 3)
        else:
            self.conv1 = Conv2d(chans, spec.growth, 3)
        self.bottleneck = spec.compact
        self.join = wish.join.build(chans, rate)

    def block_forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(self.act1(self.norm1(x)))
        if self.bottleneck:
            branch = self.conv2(self.act2(self.norm2(branch)))
        return self.join(x, branch)

    def skip_forward(self, x: Tensor) -> Tensor:
        """A dropped branch is zeros: the layers behind have a place for its channels."""
        return self.join.meet(x, x.new_zeros(x.shape[0], self.growth, *x.shape[2:]))


class Transition(nn.Module):
    """norm ─ relu ─ conv 1x1 ─ average pooling 2x2."""

    def __init__(self, in_chans: int, out_chans: int):
        super().__init__()
        self.norm = GroupedBatchNorm2d(in_chans)
        self.conv = Conv2d(in_chans, out_chans, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x_BCHW))), 2)


@dataclass(frozen=True)
class DenseNetSpec:
    """A size: layers of each dense block; ``compact``: with bottlenecks and half the channels after a transition."""

    growth: int
    depths: tuple[int, ...]
    cifar: bool = False
    compact: bool = True

    @property
    def first(self) -> int:
        """Channels before the first dense block (sections 3 and 4.2: 16, or twice the growth rate for BC)."""
        return 2 * self.growth if self.compact else 16


class DenseNet(nn.Module):
    """stem -> dense blocks with transitions between -> norm, relu -> global average -> linear classifier.

    ::

        ImageNet:  x ─ conv0 7x7 /2 ─ norm0 ─ relu ─ maxpool 3x3 /2 ─ denseblock1 ─ transition1 ─ ... ─ denseblock4
                   ─ norm5 ─ relu ─ mean over H, W ─ classifier ─ logits [B, K]
        CIFAR:     x ─ conv0 3x3 ─ denseblock1 ─ transition1 ─ denseblock2 ─ transition2 ─ denseblock3 ─ norm5 ─ ...
    """

    def __init__(self, spec: DenseNetSpec, wish: Wish):
        super().__init__()
        self.features = nn.Sequential()
        chans = spec.first
        for name, module in _stem(spec, wish.in_chans).items():
            self.features.add_module(name, module)
        rates = iter(wish.rates(sum(spec.depths)))
        for number, depth in enumerate(spec.depths, 1):
            block = nn.Sequential()
            for layer in range(1, depth + 1):
                block.add_module(f"denselayer{layer}", DenseLayer(chans, spec, wish, next(rates)))
                chans += spec.growth
            self.features.add_module(f"denseblock{number}", block)
            if number < len(spec.depths):
                kept = chans // 2 if spec.compact else chans
                self.features.add_module(f"transition{number}", Transition(chans, kept))
                chans = kept
        self.features.add_module("norm5", GroupedBatchNorm2d(chans))
        self.classifier = Linear(chans, wish.classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.classifier(F.relu(self.features(x_BCHW)).mean((2, 3)))

    def part(self, name: str) -> list[nn.Module]:
        """The modules of ``stem`` or ``head``, for freezing and the like."""
        stem = [module for child, module in self.features.named_children() if child in ("conv0", "norm0")]
        return {"stem": stem, "head": [self.classifier]}[name]


def _stem(spec: DenseNetSpec, in_chans: int) -> dict[str, nn.Module]:
    if spec.cifar:
        return {"conv0": Conv2d(in_chans, spec.first, 3)}
    return {
        "conv0": Conv2d(in_chans, spec.first, 7, 2),
        "norm0": GroupedBatchNorm2d(spec.first),
        "relu0": nn.ReLU(inplace=True),
        "pool0": nn.MaxPool2d(3, stride=2, padding=1),
    }


SPECS: dict[str, DenseNetSpec] = {
    "densenet121": DenseNetSpec(32, (6, 12, 24, 16)),
    "densenet169": DenseNetSpec(32, (6, 12, 32, 32)),
    "densenet201": DenseNetSpec(32, (6, 12, 48, 32)),
    "densenet161": DenseNetSpec(48, (6, 12, 36, 24)),
    "cifar_densenet40_k12": DenseNetSpec(12, (12, 12, 12), cifar=True, compact=False),
    "cifar_densenet100_k12": DenseNetSpec(12, (32, 32, 32), cifar=True, compact=False),
    "cifar_densenetbc100_k12": DenseNetSpec(12, (16, 16, 16), cifar=True),
    "cifar_densenetbc190_k40": DenseNetSpec(40, (31, 31, 31), cifar=True),
}


def build(spec: DenseNetSpec, wish: Wish) -> DenseNet:
    """A DenseNet of the given size with the recipe's drop path; UserError for any join but ``concat``."""
    if not wish.join.concatenates:
        raise UserError(
            f"model.join.name is {wish.join.name!r}, but {wish.name} appends each branch to its stream, whose width "
            f"the branch does not have: set model.join.name=concat, or leave model.join out."
        )
    if wish.zero_init:
        raise UserError(
            f"model.zero_init is true, but a layer of {wish.name} that starts at zero would never learn: the BatchNorm "
            f"and ReLU behind it pass no gradient to channels that are zero everywhere. Set it to auto or false."
        )
    for key, plain in VARIANTS.items():
        if wish.options.get(key, plain) != plain:
            raise UserError(f"model.{key} is an option of ResNets, and {wish.name} is none.")
    wish.refuse_images_below(2 ** (len(spec.depths) - 1) if spec.cifar else 29)
    return DenseNet(spec, wish)
