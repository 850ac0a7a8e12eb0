"""Pre-activation residual networks (He et al. 2016, arXiv:1603.05027): nothing stands on the shortcut.

Shapes: B rows, C channels, H and W pixels, K classes.

ImageNet sizes have timm's names and strides, so its ``resnetv2_50`` and the others load; 200 layers, which timm has
not, are those of the paper (3, 24, 36 and 3 blocks). CIFAR sizes are sections 3 and 4 of the paper: 6n + 2 layers of
basic blocks with shortcuts without parameters, or 9n + 2 of bottlenecks with projections, whose first convolution
strides as in the authors' own code (KaimingHe/resnet-1k-layers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from restrain.errors import UserError
from restrain.models.blocks import ResidualBlock
from restrain.models.convnets.resnet import VARIANTS, ResNetSpec, Subsample
from restrain.models.fill import ZERO, Fill, fan_in_uniform
from restrain.models.layers import Conv2d
from restrain.models.norm import GroupedBatchNorm2d
from restrain.models.residual import JoinSpec
from restrain.models.wish import Wish


class ZeroConv2d(Conv2d):
    """A convolution that starts at zero: a pre-activation branch ends in one, and not in a norm with a scale."""

    initial_scale = 0.0

    def fills(self) -> dict[str, Fill]:
        return {"weight": ZERO}


class ClassifierConv2d(Conv2d):
    """A linear classifier as the 1x1 convolution that timm has, filled as the linear layer that it is."""

    def __init__(self, chans: int, classes: int):
        super().__init__(chans, classes, 1, bias=True)

    def fills(self) -> dict[str, Fill]:
        bound = fan_in_uniform(self.in_channels)
        return {"weight": bound, "bias": bound}


class Projection(nn.Module):
    """A strided 1x1 convolution; there is no norm behind it, as the block's first norm stands before it."""

    def __init__(self, in_chans: int, out_chans: int, stride: int):
        super().__init__()
        self.conv = Conv2d(in_chans, out_chans, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(x_BCHW)


@dataclass(frozen=True)
class Place:
    """Where a block stands. ``first``: in the network; ``stage_opens``: in its stage; ``rate``: of drop path."""

    in_chans: int
    width: int
    stride: int
    join: JoinSpec
    rate: float
    zero_init: bool
    first: bool
    stage_opens: bool
    cifar: bool

    def last_conv(self, in_chans: int, out_chans: int, kernel: int) -> Conv2d:
        """The branch's last convolution. It does not start at zero where the shortcut pads with zeros: BatchNorm and
        ReLU pass no gradient to channels that are zero throughout, which would stay so for ever."""
        pads = self.cifar and self.join.keeps_shortcut and self.in_chans < out_chans
        return (ZeroConv2d if self.zero_init and not pads else Conv2d)(in_chans, out_chans, kernel)


class PreActBlock(ResidualBlock):
    """What both kinds of block share: the shortcut, which takes x as it is wherever shapes allow.

    ::

        x ─┬─ norm1 ─ relu ─┬─ branch ──────────── join ─ y
           └── x, or ───────┴─ (downsample) ────────┘

    Two kinds of shortcut begin behind the first activation: those with a projection, and that of the network's first
    block, which follows a convolution without an activation of its own (the paper's appendix).
    """

    downsample: nn.Module | None
    shares_activation: bool

    def __init__(self, place: Place, out_chans: int, projects: bool):
        super().__init__()
        changes = place.stride > 1 or place.in_chans != out_chans
        self.norm1 = GroupedBatchNorm2d(place.in_chans)
        self.act1 = nn.ReLU(inplace=True)
        self.join = place.join.build(out_chans, place.rate)
        self.downsample = None
        if place.join.keeps_shortcut and projects:
            self.downsample = Projection(place.in_chans, out_chans, place.stride)
        elif place.join.keeps_shortcut and changes:
            self.downsample = Subsample(place.in_chans, out_chans, place.stride)
        self.shares_activation = place.join.keeps_shortcut and (projects or (place.cifar and place.first))

    def block_forward(self, x: Tensor) -> Tensor:
        activated = self.act1(self.norm1(x))
        return self.join(self.shortcut(activated if self.shares_activation else x), self.branch(activated))

    def skip_forward(self, x: Tensor) -> Tensor:
        return self.join.without(self.shortcut(self.act1(self.norm1(x)) if self.shares_activation else x))

    def skip_has_parameters(self) -> bool:
        return self.shares_activation or super().skip_has_parameters()

    def shortcut(self, x: Tensor) -> Tensor:
        """``x`` in the shape of the branch."""
        return x if self.downsample is None else self.downsample(x)

    def branch(self, activated: Tensor) -> Tensor:
        """f(x) from the first activation on."""
        raise NotImplementedError


class PreActBasic(PreActBlock):
    """``branch``: conv1 3x3 /s ─ norm2 ─ relu ─ conv2 3x3."""

    expansion = 1

    def __init__(self, place: Place):
        changes = place.stride > 1 or place.in_chans != place.width
        super().__init__(place, place.width, projects=changes and not place.cifar)
        self.conv1 = Conv2d(place.in_chans, place.width, 3, place.stride)
        self.norm2 = GroupedBatchNorm2d(place.width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = place.last_conv(place.width, place.width, 3)

    def branch(self, activated: Tensor) -> Tensor:
        return self.conv2(self.act2(self.norm2(self.conv1(activated))))


class PreActBottleneck(PreActBlock):
    """``branch``: conv1 1x1 ─ norm2 ─ relu ─ conv2 3x3 ─ norm3 ─ relu ─ conv3 1x1 up to four times the width.

    The 3x3 convolution strides; in the CIFAR sizes the first 1x1.
    """

    expansion = 4

    def __init__(self, place: Place):
        width, out_chans = place.width, place.width * self.expansion
        super().__init__(place, out_chans, projects=place.stage_opens)
        first, second = (place.stride, 1) if place.cifar else (1, place.stride)
        self.conv1 = Conv2d(place.in_chans, width, 1, first)
        self.norm2 = GroupedBatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(width, width, 3, second)
        self.norm3 = GroupedBatchNorm2d(width)
        self.act3 = nn.ReLU(inplace=True)
        self.conv3 = place.last_conv(width, out_chans, 1)

    def branch(self, activated: Tensor) -> Tensor:
        branch = self.conv2(self.act2(self.norm2(self.conv1(activated))))
        return self.conv3(self.act3(self.norm3(branch)))


class Stage(nn.Module):
    """Blocks of one width, in timm's nesting of names."""

    def __init__(self, blocks: list[PreActBlock]):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.blocks(x_BCHW)


class Head(nn.Module):
    """Mean over H and W, and the classifier: logits [B, K]."""

    def __init__(self, chans: int, classes: int):
        super().__init__()
        self.fc = ClassifierConv2d(chans, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.fc(x_BCHW.mean((2, 3), keepdim=True)).flatten(1)


class PreActResNet(nn.Module):
    """stem -> stages -> norm, relu -> global average -> classifier.

    ::

        ImageNet:  x ─ stem.conv 7x7 /2 ─ maxpool 3x3 /2 ─ stages.0..3 ─ norm ─ relu ─ mean over H, W ─ head.fc
        CIFAR:     x ─ stem.conv 3x3 ─ stages.0..2 ─ norm ─ relu ─ mean over H, W ─ head.fc ─ logits [B, K]
    """

    def __init__(self, spec: ResNetSpec, wish: Wish):
        super().__init__()
        chans = spec.widths[0]
        conv = Conv2d(wish.in_chans, chans, 3) if spec.cifar else Conv2d(wish.in_chans, chans, 7, 2)
        pool = nn.Identity() if spec.cifar else nn.MaxPool2d(3, stride=2, padding=1)
        self.stem = nn.Sequential()
        self.stem.add_module("conv", conv)
        self.stem.add_module("pool", pool)
        rates = iter(wish.rates(sum(spec.depths)))
        stages = []
        for stage, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True)):
            blocks = []
            for index in range(depth):
                place = Place(
                    chans,
                    width,
                    stride=2 if stage > 0 and index == 0 else 1,
                    join=wish.join,
                    rate=next(rates),
                    zero_init=wish.zero_init,
                    first=stage == index == 0,
                    stage_opens=index == 0,
                    cifar=spec.cifar,
                )
                blocks.append(spec.block(place))
                chans = width * spec.block.expansion
            stages.append(Stage(blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = GroupedBatchNorm2d(chans)
        self.head = Head(chans, wish.classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.stages(self.stem(x_BCHW)))))

    def part(self, name: str) -> list[nn.Module]:
        """The modules of ``stem`` or ``head``, for freezing and the like."""
        return {"stem": [self.stem], "head": [self.head.fc]}[name]


SPECS: dict[str, ResNetSpec] = {
    "resnetv2_18": ResNetSpec(PreActBasic, (2, 2, 2, 2)),
    "resnetv2_34": ResNetSpec(PreActBasic, (3, 4, 6, 3)),
    "resnetv2_50": ResNetSpec(PreActBottleneck, (3, 4, 6, 3)),
    "resnetv2_101": ResNetSpec(PreActBottleneck, (3, 4, 23, 3)),
    "resnetv2_152": ResNetSpec(PreActBottleneck, (3, 8, 36, 3)),
    "resnetv2_200": ResNetSpec(PreActBottleneck, (3, 24, 36, 3)),
    "cifar_preresnet20": ResNetSpec(PreActBasic, (3, 3, 3), cifar=True),
    "cifar_preresnet56": ResNetSpec(PreActBasic, (9, 9, 9), cifar=True),
    "cifar_preresnet110": ResNetSpec(PreActBasic, (18, 18, 18), cifar=True),
    "cifar_preresnet164": ResNetSpec(PreActBottleneck, (18, 18, 18), cifar=True),
    "cifar_preresnet1001": ResNetSpec(PreActBottleneck, (111, 111, 111), cifar=True),
}


def build(spec: ResNetSpec, wish: Wish) -> PreActResNet:
    """A pre-activation ResNet of the given size with the recipe's join, drop path and zero initialisation."""
    wish.refuse_join("a pre-activation ResNet", "concat")
    for key, plain in VARIANTS.items():
        if wish.options.get(key, plain) != plain:
            raise UserError(f"model.{key} is an option of the ResNets of 2015, and {wish.name} is none.")
    return PreActResNet(spec, wish)
