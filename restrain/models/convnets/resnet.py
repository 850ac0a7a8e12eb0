"""Residual networks of He et al. 2015 (arXiv:1512.03385) and their plain counterparts.

Shapes: B rows, C channels, H and W pixels, K classes.

ImageNet sizes carry timm's state-dict names and the v1.5 stride placement (the 3x3 convolution of a bottleneck strides,
not its first 1x1: Goyal et al. 2017, arXiv:1706.02677, section 5.1), so timm's and torchvision's weights load. The
CIFAR sizes 6n + 2 are section 4.2 of the paper, with its parameter-free shortcuts (option A).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock
from restrain.models.layers import BlurConv2d, Conv2d, Linear
from restrain.models.norm import GroupedBatchNorm2d
from restrain.models.residual import Join, JoinSpec
from restrain.models.wish import Wish


class Subsample(nn.Module):
    """Option A of He et al. 2015, section 3.3: every ``stride``-th pixel, new channels filled with zeros."""

    def __init__(self, in_chans: int, out_chans: int, stride: int):
        super().__init__()
        self.stride, self.new_chans = stride, out_chans - in_chans

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.pad(x_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_chans))


@dataclass(frozen=True)
class Place:
    """Where a block stands: its channels, its stride, its join and how a shortcut changes shape."""

    in_chans: int
    width: int
    stride: int
    join: JoinSpec
    rate: float
    zero_init: bool
    projection: bool  # True: 1x1 convolution and BatchNorm (option B); False: Subsample (option A)
    pooled: bool = False  # a projection that strides pools first (ResNet-D)
    blurpool: bool = False

    def conv(self, in_chans: int, out_chans: int, kernel: int, stride: int) -> Conv2d:
        """A convolution of this place, blurred where it strides and has 16 channels to blur (FFCV's rule)."""
        kind = BlurConv2d if self.blurpool and stride > 1 and in_chans >= 16 else Conv2d
        return kind(in_chans, out_chans, kernel, stride)

    def initial_scale(self, out_chans: int) -> float:
        """Of the branch's last norm. Not 0 where the shortcut pads with zeros: a channel in which branch and shortcut
        are both zero is so behind each later join as well, and the ReLU there passes no gradient at zero, so the
        channel would stay dead. Such a block is no identity in any case."""
        pads = self.join.keeps_shortcut and not self.projection and self.in_chans < out_chans
        return 0.0 if self.zero_init and not pads else 1.0

    def shortcut(self, out_chans: int) -> nn.Module | None:
        """What fits x to the branch's shape; None where it fits already, or where the join does not look at x."""
        if not self.join.keeps_shortcut or (self.stride == 1 and self.in_chans == out_chans):
            return None
        if not self.projection:
            return Subsample(self.in_chans, out_chans, self.stride)
        if self.pooled:
            # Each pixel is used once, where a strided 1x1 convolution looks at a quarter of them (He et al. 2019,
            # arXiv:1812.01187, section 4.1, ResNet-D).
            pool = nn.AvgPool2d(2, self.stride, ceil_mode=True, count_include_pad=False)
            first = pool if self.stride > 1 else nn.Identity()
            return nn.Sequential(first, Conv2d(self.in_chans, out_chans, 1), GroupedBatchNorm2d(out_chans))
        conv = self.conv(self.in_chans, out_chans, 1, self.stride)
        return nn.Sequential(conv, GroupedBatchNorm2d(out_chans))


class PostActivationBlock(ResidualBlock):
    """A block with a ReLU behind its join."""

    join: Join
    downsample: nn.Module | None

    def shortcut(self, x: Tensor) -> Tensor:
        """``x`` in the shape of the branch."""
        return x if self.downsample is None else self.downsample(x)

    def skip_forward(self, x: Tensor) -> Tensor:
        y = self.join.without(self.shortcut(x))
        return y if y is x else F.relu(y)  # x left a ReLU: another one would change neither it nor its gradient


class BasicBlock(PostActivationBlock):
    """Two 3x3 convolutions.

    ::

        x ─┬─ conv1 3x3 /s ─ bn1 ─ relu ─ conv2 3x3 ─ bn2 ─ join ─ relu ─ y
           └─────────────────── downsample ───────────────────┘
    """

    expansion = 1

    def __init__(self, place: Place):
        super().__init__()
        width = place.width
        self.conv1 = place.conv(place.in_chans, width, 3, place.stride)
        self.bn1 = GroupedBatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(width, width, 3)
        self.bn2 = GroupedBatchNorm2d(width)
        self.join = place.join.build(width, place.rate)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = place.shortcut(width)
        self.bn2.initial_scale = place.initial_scale(width)

    def block_forward(self, x: Tensor) -> Tensor:
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return self.act2(self.join(self.shortcut(x), branch))


class Bottleneck(PostActivationBlock):
    """1x1 down to the width, 3x3, 1x1 up to four times the width.

    ::

        x ─┬─ conv1 1x1 ─ bn1 ─ relu ─ conv2 3x3 /s ─ bn2 ─ relu ─ conv3 1x1 ─ bn3 ─ join ─ relu ─ y
           └──────────────────────────── downsample ──────────────────────────────────┘
    """

    expansion = 4

    def __init__(self, place: Place):
        super().__init__()
        width, out_chans = place.width, place.width * self.expansion
        self.conv1 = Conv2d(place.in_chans, width, 1)
        self.bn1 = GroupedBatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = place.conv(width, width, 3, place.stride)
        self.bn2 = GroupedBatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = Conv2d(width, out_chans, 1)
        self.bn3 = GroupedBatchNorm2d(out_chans)
        self.join = place.join.build(out_chans, place.rate)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = place.shortcut(out_chans)
        self.bn3.initial_scale = place.initial_scale(out_chans)

    def block_forward(self, x: Tensor) -> Tensor:
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.act2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        return self.act3(self.join(self.shortcut(x), branch))


@dataclass(frozen=True)
class ResNetSpec:
    """A size: the block, how many each stage has, and the dialect (ImageNet or CIFAR stem, stages, shortcuts)."""

    block: type[Any]  # of a Place of its family
    depths: tuple[int, ...]
    cifar: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage's 3x3 convolutions (He et al. 2015: table 1; section 4.2)."""
        return (16, 32, 64) if self.cifar else (64, 128, 256, 512)


@dataclass(frozen=True)
class BlockOptions:
    """What the recipe chooses for all blocks; ``rates`` are the drop probabilities in depth order."""

    join: JoinSpec
    rates: tuple[float, ...]
    zero_init: bool
    deep_stem: bool = False
    pooled_shortcut: bool = False
    blurpool: bool = False


class ResNet(nn.Module):
    """stem -> blocks -> global average -> linear head.

    ::

        ImageNet:  x ─ conv1 7x7 /2 ─ bn1 ─ relu ─ maxpool 3x3 /2 ─ layer1..4 ─ mean over H, W ─ fc ─ logits [B, K]
        deep stem: conv1 is 3x3 /2 ─ bn ─ relu ─ 3x3 ─ bn ─ relu ─ 3x3
        CIFAR:     x ─ conv1 3x3 ─ bn1 ─ relu ─ layer1..3 ─ mean over H, W ─ fc ─ logits [B, K]
    """

    def __init__(self, spec: ResNetSpec, classes: int, in_chans: int, options: BlockOptions):
        super().__init__()
        chans = spec.widths[0]
        self.conv1 = _stem(spec, in_chans, chans, options.deep_stem)
        self.bn1 = GroupedBatchNorm2d(chans)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if spec.cifar else nn.MaxPool2d(3, stride=2, padding=1)
        rates = iter(options.rates)
        self.stages = [f"layer{stage + 1}" for stage in range(len(spec.depths))]
        for stage, (name, depth, width) in enumerate(zip(self.stages, spec.depths, spec.widths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                place = Place(
                    chans,
                    width,
                    stride,
                    options.join,
                    next(rates),
                    options.zero_init,
                    projection=not spec.cifar,
                    pooled=options.pooled_shortcut,
                    blurpool=options.blurpool,
                )
                blocks.append(spec.block(place))
                chans = width * spec.block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.fc = Linear(chans, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.maxpool(self.act1(self.bn1(self.conv1(x_BCHW))))
        for stage in self.stages:
            x_BCHW = getattr(self, stage)(x_BCHW)
        return self.fc(x_BCHW.mean((2, 3)))

    def part(self, name: str) -> list[nn.Module]:
        """The modules of ``stem`` or ``head``, for freezing and the like."""
        return {"stem": [self.conv1, self.bn1], "head": [self.fc]}[name]


def _stem(spec: ResNetSpec, in_chans: int, chans: int, deep: bool) -> nn.Module:
    """The first convolution: 3x3 of the CIFAR sizes, 7x7 of stride 2, or three 3x3 ones in its place (ResNet-C)."""
    if not deep:
        return Conv2d(in_chans, chans, 3) if spec.cifar else Conv2d(in_chans, chans, 7, 2)
    half = chans // 2
    return nn.Sequential(
        *(Conv2d(in_chans, half, 3, 2), GroupedBatchNorm2d(half), nn.ReLU(inplace=True)),
        *(Conv2d(half, half, 3), GroupedBatchNorm2d(half), nn.ReLU(inplace=True)),
        Conv2d(half, chans, 3),
    )


SPECS: dict[str, ResNetSpec] = {
    "resnet18": ResNetSpec(BasicBlock, (2, 2, 2, 2)),
    "resnet34": ResNetSpec(BasicBlock, (3, 4, 6, 3)),
    "resnet50": ResNetSpec(Bottleneck, (3, 4, 6, 3)),
    "resnet101": ResNetSpec(Bottleneck, (3, 4, 23, 3)),
    "resnet152": ResNetSpec(Bottleneck, (3, 8, 36, 3)),
    "cifar_resnet20": ResNetSpec(BasicBlock, (3, 3, 3), cifar=True),
    "cifar_resnet32": ResNetSpec(BasicBlock, (5, 5, 5), cifar=True),
    "cifar_resnet44": ResNetSpec(BasicBlock, (7, 7, 7), cifar=True),
    "cifar_resnet56": ResNetSpec(BasicBlock, (9, 9, 9), cifar=True),
    "cifar_resnet110": ResNetSpec(BasicBlock, (18, 18, 18), cifar=True),
    "cifar_resnet1202": ResNetSpec(BasicBlock, (200, 200, 200), cifar=True),
}


VARIANTS = {"stem": "basic", "downsample": "conv", "blurpool": False}


def build(spec: ResNetSpec, wish: Wish) -> ResNet:
    """A ResNet of the given size with the recipe's join, drop path and zero initialisation."""
    wish.refuse_join("a ResNet", "concat")
    chosen = {key: wish.options.get(key, plain) != plain for key, plain in VARIANTS.items()}
    for key, is_chosen in chosen.items():
        if is_chosen and spec.cifar:
            raise UserError(f"model.{key} is an option of the ImageNet sizes, and {wish.name} is a CIFAR size.")
    options = BlockOptions(
        wish.join,
        wish.rates(sum(spec.depths)),
        wish.zero_init,
        deep_stem=chosen["stem"],
        pooled_shortcut=chosen["downsample"],
        blurpool=chosen["blurpool"],
    )
    return ResNet(spec, wish.classes, wish.in_chans, options)
