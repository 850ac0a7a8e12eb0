"""Random erasing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from restrain import draws
from restrain.data.augment.base import Frame, Params, below, between


class RandomErasing:
    """A random rectangle erased (Zhong et al. 2020, arXiv:1708.04896); torchvision's and timm's distribution.

    params: (top, left, height, width, key of the noise), or () for nothing. The rectangle is smaller than the image;
    after ten tries nothing is erased. The others erase normalised floats; here it is done to pixels:

    * ``mean``: `data.mean`, rounded to a grey level, where theirs is exactly 0 once normalised: at most 0.5 / 255 / std
      from it (0.009 at ImageNet's std).
    * ``noise``: mean + std x normal for each pixel and channel, rounded and cut to 0 and 255, where theirs goes on: at
      ImageNet's mean and std that cuts what is below -1.8 (blue) to -2.1 (red) or above 2.2 (red) to 2.6 (blue).
    """

    def __init__(self, frame: Frame, p: float, scale: Sequence[float], ratio: Sequence[float], fill: str = "mean"):
        self.frame, self.p, self.scale, self.fill = frame, p, tuple(scale), fill
        self.aspect = (math.log(ratio[0]), math.log(ratio[1]))

    def params(self, key: int, height: int, width: int) -> Params:
        if draws.uniform(draws.extend_key(key, 0)) >= self.p:
            return ()
        for attempt in range(10):
            parts = [draws.extend_key(key, 1, attempt, k) for k in range(4)]
            area = height * width * between(parts[0], self.scale)
            aspect = math.exp(between(parts[1], self.aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = below(parts[2], height - h + 1), below(parts[3], width - w + 1)
                return top, left, h, w, draws.extend_key(key, 2)
        return ()

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        if not params:
            return image
        top, left, h, w, key = params
        out = image.copy()
        out[top : top + h, left : left + w] = self.frame.fill if self.fill == "mean" else self._noise(key, h, w)
        return out

    def _noise(self, key: int, height: int, width: int) -> np.ndarray:
        channels = len(self.frame.mean)
        keys = draws.extend(np.uint64(key), np.arange(height * width * channels))
        normal = draws.normal(keys).reshape(height, width, channels)
        pixels = np.rint(255.0 * (np.array(self.frame.mean) + np.array(self.frame.std) * normal))
        return np.clip(pixels, 0, 255).astype(np.uint8)
