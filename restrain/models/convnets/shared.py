"""Residual networks whose blocks share their weights: recurrent networks, unrolled (Liao and Poggio 2016, 1604.03640).

A stage of a ResNet with shared convolutions is one recurrent layer, run for as many steps as the stage has blocks. Each
step is a residual block of its own: what is shared is the convolutions' weights alone, while BatchNorm keeps parameters
and statistics of its own at each step (the paper's time-specific normalisation), and so does the join.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from restrain.models.blocks import residual_blocks
from restrain.models.convnets.resnet import BasicBlock, ResNet, ResNetSpec
from restrain.models.convnets.resnet import build as build_resnet
from restrain.models.wish import Wish


def share_convolutions(stage: nn.Module) -> None:
    """Tie the stage's convolutions, in place: one of a place and shape has the weight of the first block that has it.

    The first convolution of a stage that widens is of a shape of its own, and so tied to none.
    """
    first: dict[tuple[str, torch.Size], Tensor] = {}
    for _, block in residual_blocks(stage):
        for name, conv in block.named_children():
            if isinstance(conv, nn.Conv2d):
                conv.weight = first.setdefault((name, conv.weight.shape), conv.weight)


SPECS: dict[str, ResNetSpec] = {
    "cifar_shared_resnet20": ResNetSpec(BasicBlock, (3, 3, 3), cifar=True),
    "cifar_shared_resnet56": ResNetSpec(BasicBlock, (9, 9, 9), cifar=True),
    "cifar_shared_resnet110": ResNetSpec(BasicBlock, (18, 18, 18), cifar=True),
}


def build(spec: ResNetSpec, wish: Wish) -> ResNet:
    """The ResNet of the given size with its convolutions shared; its blocks, joins and names are that ResNet's."""
    model = build_resnet(spec, wish)
    for stage in model.stages:
        share_convolutions(getattr(model, stage))
    return model
