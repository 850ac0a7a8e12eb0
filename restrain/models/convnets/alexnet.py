"""AlexNet (Krizhevsky et al. 2012) in the form for one processor (Krizhevsky 2014, arXiv:1404.5997).

Shapes: B rows, C channels, H and W pixels, K classes.

timm has none; names, channels and weights are torchvision's. Without the paper's response normalisation, as there.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from restrain.models.convnets.plain import refuse_residual
from restrain.models.dropout import KeyedDropout
from restrain.models.layers import Conv2d, Linear
from restrain.models.wish import Wish

DROPOUT = 0.5  # Krizhevsky et al. 2012, section 4.2: before the first two linear layers
HIDDEN = 4096  # units of these
SIDE = 6  # pixels that the first looks at


class AlexNet(nn.Module):
    """Five convolutions, three linear layers, no shortcut.

    ::

        x ─ conv 11x11 /4 ─ pool ─ conv 5x5 ─ pool ─ conv 3x3 ─ conv 3x3 ─ conv 3x3 ─ pool ─ mean to 6x6
          ─ dropout ─ linear ─ dropout ─ linear ─ linear ─ logits [B, K]      (relu behind each but the last)
    """

    def __init__(self, wish: Wish):
        super().__init__()
        self.features = nn.Sequential(
            Conv2d(wish.in_chans, 64, 11, 4, padding=2, bias=True),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            Conv2d(64, 192, 5, bias=True),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            Conv2d(192, 384, 3, bias=True),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, 3, bias=True),
            nn.ReLU(inplace=True),
            Conv2d(256, 256, 3, bias=True),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.classifier = nn.Sequential(
            KeyedDropout(DROPOUT),
            Linear(256 * SIDE * SIDE, HIDDEN),
            nn.ReLU(inplace=True),
            KeyedDropout(DROPOUT),
            Linear(HIDDEN, HIDDEN),
            nn.ReLU(inplace=True),
            Linear(HIDDEN, wish.classes),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.features(x_BCHW)
        if x_BCHW.shape[2:] != (SIDE, SIDE):  # of other images than 224 pixels
            x_BCHW = F.adaptive_avg_pool2d(x_BCHW, SIDE)
        return self.classifier(x_BCHW.flatten(1))

    def part(self, name: str) -> list[nn.Module]:
        """The modules of ``stem`` (the first convolution) or ``head``, for freezing and the like."""
        return {"stem": [self.features[0]], "head": [self.classifier[6]]}[name]


SPECS = {"alexnet": None}


def build(spec: None, wish: Wish) -> AlexNet:
    """AlexNet has one size; UserError for what only residual blocks have."""
    refuse_residual(wish)
    wish.refuse_images_below(63)
    return AlexNet(wish)
