"""Mixup and cutmix inside a group of the batch: drawn on the host from a key, applied on the device.

Partners never leave the group, so a micro-batch of whole groups needs no other rank and the result does not depend on
the world. Coefficient, partner and box are those of a group, as they are those of a batch in timm and torchvision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from restrain import draws
from restrain.draws import Purpose


@dataclass(frozen=True)
class Mix:
    """What to mix: alphas of mixup (Zhang et al. 2017, arXiv:1710.09412) and cutmix (Yun et al. 2019,
    arXiv:1905.04899), 0 for never; with both, each group takes either with probability 1/2. From step ``off`` on
    nothing is mixed."""

    seed: int
    mixup: float = 0.0
    cutmix: float = 0.0
    off: int | None = None

    def active(self, step: int) -> bool:
        return (self.mixup > 0 or self.cutmix > 0) and (self.off is None or step < self.off)


@dataclass(frozen=True)
class MixDraw:
    """How the b rows of a micro-batch are mixed.

    partner: int64 [b], row (of this micro-batch) that is mixed in. pixels: float32 [b], share of the row's own pixels
    in the blend (1 under cutmix). own: float32 [b], share of the row's own label. box: int64 [b, 4] (top, left, bottom,
    right), where the partner's pixels stand (empty under mixup). blends, boxes: whether any row has such.
    """

    partner: torch.Tensor
    pixels: torch.Tensor
    own: torch.Tensor
    box: torch.Tensor
    blends: bool
    boxes: bool

    def to(self, device: torch.device | str, non_blocking: bool = True) -> MixDraw:
        names = ("partner", "pixels", "own", "box")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names})


def draw(mix: Mix, step: int, first_group: int, groups: int, group: int, size: tuple[int, int]) -> MixDraw:
    """The draw for ``groups`` groups of ``group`` rows from canonical group ``first_group`` on; size: (height, width).

    The key of a group is (seed, MIX, step, group). The partner is the row a keyed distance in 1..group-1 further, so
    never the row itself; the coefficient is Beta(alpha, alpha), under cutmix corrected to the box's exact area.
    """
    height, width = size
    partner = np.empty((groups, group), np.int64)
    pixels, own = np.ones((groups, group), np.float32), np.ones((groups, group), np.float32)
    box = np.zeros((groups, group, 4), np.int64)
    rows = np.arange(group)
    cuts = np.zeros(groups, bool)
    for g in range(groups):
        key = draws.key(mix.seed, Purpose.MIX, step, first_group + g)
        distance = 1 + draws.integers(draws.extend_key(key, 0), group - 1) if group > 1 else 0
        partner[g] = g * group + (rows + distance) % group
        cuts[g] = mix.cutmix > 0 and (mix.mixup <= 0 or draws.uniform(draws.extend_key(key, 1)) < 0.5)
        alpha = mix.cutmix if cuts[g] else mix.mixup
        coefficient = float(draws.beta(draws.extend_key(key, 2), alpha, alpha))
        if cuts[g]:
            box[g] = top, left, bottom, right = _box(key, coefficient, height, width)
            own[g] = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            pixels[g] = own[g] = coefficient
    flat = [torch.from_numpy(a.reshape(groups * group, *a.shape[2:])) for a in (partner, pixels, own, box)]
    return MixDraw(*flat, blends=not cuts.all(), boxes=bool(cuts.any()))


def apply(images: torch.Tensor, targets: torch.Tensor, mixed: MixDraw) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [b, C, H, W] (floating) and targets [b, classes] (floating), mixed; new tensors on the same device."""
    mixed = mixed.to(images.device)
    own = mixed.own[:, None].to(targets.dtype)
    targets = targets * own + targets[mixed.partner] * (1 - own)
    partners = images[mixed.partner]
    out = images
    if mixed.blends:
        share = mixed.pixels[:, None, None, None].to(images.dtype)
        out = images * share + partners * (1 - share)
    if mixed.boxes:
        top, left, bottom, right = mixed.box.unbind(1)
        y = torch.arange(images.shape[2], device=images.device)
        x = torch.arange(images.shape[3], device=images.device)
        rows = (y >= top[:, None]) & (y < bottom[:, None])
        columns = (x >= left[:, None]) & (x < right[:, None])
        out = torch.where((rows[:, :, None] & columns[:, None, :])[:, None], partners, out)
    return out, targets


def _box(key: int, coefficient: float, height: int, width: int) -> tuple[int, int, int, int]:
    """A box of area 1 - coefficient around a uniform centre, clipped to the image (the paper's, section 3.1)."""
    side = math.sqrt(1.0 - coefficient)
    h, w = int(height * side), int(width * side)
    y = int(draws.integers(draws.extend_key(key, 3), height))
    x = int(draws.integers(draws.extend_key(key, 4), width))
    top, bottom = max(y - h // 2, 0), min(y + h // 2, height)
    left, right = max(x - w // 2, 0), min(x + w // 2, width)
    return top, left, bottom, right
