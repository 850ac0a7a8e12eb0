"""VGG nets (Simonyan and Zisserman 2014, arXiv:1409.1556): depth without shortcuts, the baseline of residual networks.

Shapes: B rows, C channels, H and W pixels, K classes.

The names are timm's, not torchvision's: timm writes the first two linear layers as convolutions (the paper's section
3.2 at test time), so the nets take images of any size from 32 pixels on, and timm's weights of all four load. The
numbers are torchvision's, whose weights timm's are. ``cifar_vgg16_bn`` is the same convolutions for images of 32
pixels, whose one remaining pixel a single linear layer classifies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from restrain.models.convnets.plain import refuse_residual
from restrain.models.dropout import KeyedDropout
from restrain.models.layers import Conv2d, Linear
from restrain.models.norm import GroupedBatchNorm2d
from restrain.models.wish import Wish

DROPOUT = 0.5  # section 3.1: on the first two linear layers
HIDDEN, SIDE = 4096, 7  # units of these, and the pixels that they look at


@dataclass(frozen=True)
class VGGSpec:
    """A size: 3x3 convolutions of each stage (table 1, columns D and E); ``norm``: BatchNorm behind each of them;
    ``hidden``: with the two hidden linear layers, whose weights are nine tenths of the net."""

    depths: tuple[int, ...]
    norm: bool = False
    hidden: bool = True

    widths = (64, 128, 256, 512, 512)


class PreLogits(nn.Module):
    """The first two linear layers, as convolutions over 7x7 pixels and over one.

    ::

        x ─ fc1 7x7 ─ relu ─ dropout ─ fc2 1x1 ─ relu ─ y [B, 4096, H - 6, W - 6]
    """

    def __init__(self, chans: int):
        super().__init__()
        self.fc1 = Conv2d(chans, HIDDEN, SIDE, padding=0, bias=True)
        self.drop = KeyedDropout(DROPOUT)
        self.fc2 = Conv2d(HIDDEN, HIDDEN, 1, bias=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        if min(height, width) < SIDE:  # of images below 224 pixels: each pixel stands for several, as in timm
            x_BCHW = F.adaptive_avg_pool2d(x_BCHW, (max(height, SIDE), max(width, SIDE)))
        return F.relu(self.fc2(self.drop(F.relu(self.fc1(x_BCHW)))))


class Head(nn.Module):
    """Mean over the places that the image has room for, dropout, and the linear classifier."""

    def __init__(self, chans: int, classes: int, dropout: float):
        super().__init__()
        self.drop = KeyedDropout(dropout)
        self.fc = Linear(chans, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.fc(self.drop(x_BCHW.mean((2, 3))))


class VGG(nn.Module):
    """x ─ features: (conv 3x3 [─ norm] ─ relu) several times, maxpool 2x2 /2; five stages ─ pre_logits ─ head."""

    def __init__(self, spec: VGGSpec, wish: Wish):
        super().__init__()
        chans, layers = wish.in_chans, []
        for depth, width in zip(spec.depths, spec.widths, strict=True):
            for _ in range(depth):
                layers.append(Conv2d(chans, width, 3, bias=True))
                layers += [GroupedBatchNorm2d(width)] if spec.norm else []
                layers.append(nn.ReLU(inplace=True))
                chans = width
            layers.append(nn.MaxPool2d(2, stride=2))
        self.features = nn.Sequential(*layers)
        self.pre_logits = PreLogits(chans) if spec.hidden else nn.Identity()
        self.head = Head(HIDDEN, wish.classes, DROPOUT) if spec.hidden else Head(chans, wish.classes, 0.0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.head(self.pre_logits(self.features(x_BCHW)))

    def part(self, name: str) -> list[nn.Module]:
        """The modules of ``stem`` (the first convolution) or ``head``, for freezing and the like."""
        return {"stem": [self.features[0]], "head": [self.head.fc]}[name]


SPECS: dict[str, VGGSpec] = {
    "vgg16": VGGSpec((2, 2, 3, 3, 3)),
    "vgg19": VGGSpec((2, 2, 4, 4, 4)),
    "vgg16_bn": VGGSpec((2, 2, 3, 3, 3), norm=True),
    "vgg19_bn": VGGSpec((2, 2, 4, 4, 4), norm=True),
    "cifar_vgg16_bn": VGGSpec((2, 2, 3, 3, 3), norm=True, hidden=False),
}


def build(spec: VGGSpec, wish: Wish) -> VGG:
    """A VGG net of the given size; UserError for what only residual blocks have."""
    refuse_residual(wish)
    wish.refuse_images_below(2 ** len(spec.depths))
    return VGG(spec, wish)
