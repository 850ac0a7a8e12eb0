"""Colour jitter and PCA lighting."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

from restrain import draws
from restrain.data.augment.base import Params, between
from restrain.data.augment.operations import to_array, to_pil

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class ColorJitter:
    """Brightness, contrast and saturation times a factor, hue turned, in random order; bit-equal to torchvision's.

    params: (order, factors): the order in which the four are applied, and brightness, contrast and saturation factors
    and turn of the hue, None for those that are not to change.
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0):
        around = [(max(0.0, 1.0 - most), 1.0 + most) if most else None for most in (brightness, contrast, saturation)]
        self.ranges = (*around, (-hue, hue) if hue else None)

    def params(self, key: int, height: int, width: int) -> tuple[tuple[int, ...], tuple[float | None, ...]]:
        ranks = [draws.extend_key(key, 0, k) for k in range(4)]
        keys = [draws.extend_key(key, 1 + k) for k in range(4)]
        factors = tuple(between(k, r) if r is not None else None for k, r in zip(keys, self.ranges, strict=True))
        return tuple(sorted(range(4), key=ranks.__getitem__)), factors

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        order, factors = params
        pil = to_pil(image)
        for which in order:
            if (factor := factors[which]) is not None:
                pil = turn_hue(pil, factor) if which == 3 else ENHANCERS[which](pil).enhance(factor)
        return to_array(pil)


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """The hue of an RGB image turned by ``turn`` of the circle, in PIL's 256 hues."""
    hue, saturation, value = image.convert("HSV").split()
    step = int(turn * 255)
    turned = hue.point([(h + step) % 256 for h in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


class Lighting:
    """Colour moved along the principal components of ImageNet's (Krizhevsky et al. 2012, section 4.1).

    params: the three shares, normal with ``std``. The move is rounded to whole grey levels, at most half of one from
    the exact, and cut at black and white, where the floats of other implementations go on.
    """

    # Standard deviation of ImageNet's RGB values, of 0 to 1, along each component, and the components as columns.
    SPREAD = np.array([0.2175, 0.0188, 0.0045])
    COMPONENTS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

    def __init__(self, std: float = 0.1):
        self.std = std

    def params(self, key: int, height: int, width: int) -> tuple[float, float, float]:
        first, second, third = (self.std * float(draws.normal(draws.extend_key(key, k))) for k in range(3))
        return first, second, third

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        move = 255.0 * self.COMPONENTS @ (self.SPREAD * np.array(params))
        levels = np.clip(np.rint(np.arange(256)[:, None] + move), 0, 255).astype(np.uint8)
        return np.stack([levels[:, c][image[..., c]] for c in range(3)], axis=-1)
