"""A network and a loss of one's own: gated residual blocks and focal loss, on handwritten digits."""

import torch
from torch import nn

import restrain
from restrain.models import AddJoin, ResidualBlock, drop_rate


class GatedBlock(ResidualBlock):
    def __init__(self, width, rate):
        super().__init__()
        self.norm, self.wide = nn.BatchNorm2d(width), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.out, self.join = nn.Conv2d(width, width, 1), AddJoin(rate)

    def block_forward(self, x):
        value, gate = self.wide(self.norm(x)).chunk(2, dim=1)
        return self.join(x, self.out(value * torch.sigmoid(gate)))


def gated_net(section, width=32, depth=6):
    drop = section["drop_path"]
    blocks = [GatedBlock(width, drop_rate(drop["rate"], drop["decay"], l, depth)) for l in range(depth)]
    stem = nn.Conv2d(section["in_chans"], width, 3, padding=1)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, section["classes"]))


class Focal(restrain.Classify):
    def rows(self, logits, target):
        return super().rows(logits, target) * (1 - logits.softmax(-1).gather(1, target[:, None])[:, 0]) ** 2


if __name__ == "__main__":
    values = ["length=6ep", "model.drop_path.rate=0.1", "loss.smoothing=0", "expect=null"]
    result = restrain.fit("digits_resnet20", values, model=gated_net, task=Focal, run="runs/own-block")
    print(result.metrics.get("eval/top1"))
