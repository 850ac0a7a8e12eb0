"""Crops, resizing and mirroring: equal in distribution to torchvision's of the same name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from restrain import draws
from restrain.data import images
from restrain.data.augment.base import Params, below

CHOICE = 10  # the part of a crop's key that its kernel is drawn from: 0 to 9 are the tries
KERNELS = ("bilinear", "bicubic")


class RandomResizedCrop:
    """A crop of random area and aspect ratio, resized to size x size (Szegedy et al. 2014, section 6).

    params: (top, left, height, width) of the crop, and with ``interpolation="random"`` the kernel, either with
    probability 1/2. The area's share is uniform in ``scale``, the ratio log-uniform in ``ratio``; ten tries, then the
    central crop of the nearest legal ratio.
    """

    def __init__(
        self,
        size: int,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
    ):
        self.size, self.scale, self.ratio, self.interpolation = size, tuple(scale), tuple(ratio), interpolation

    def at(self, size: int) -> RandomResizedCrop:
        """The same crop, resized to another size."""
        return RandomResizedCrop(size, self.scale, self.ratio, self.interpolation)

    def params(self, key: int, height: int, width: int) -> Params:
        crop = self._crop(key, height, width)
        if self.interpolation == "random":
            return (*crop, KERNELS[below(draws.extend_key(key, CHOICE), 2)])
        return crop

    def _crop(self, key: int, height: int, width: int) -> tuple[int, int, int, int]:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(10):
            one = draws.extend_key(key, attempt)
            u = [draws.uniform(draws.extend_key(one, k)) for k in range(2)]
            area = height * width * (self.scale[0] + u[0] * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + u[1] * (high - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = draws.integers(draws.extend_key(one, 2), height - h + 1)
                left = draws.integers(draws.extend_key(one, 3), width - w + 1)
                return int(top), int(left), h, w
        whole = width / height
        w, h = width, height
        if whole < self.ratio[0]:
            h = round(w / self.ratio[0])
        elif whole > self.ratio[1]:
            w = round(h * self.ratio[1])
        return (height - h) // 2, (width - w) // 2, h, w

    def box(self, params: Params) -> images.Box:
        return params[0], params[1], params[2], params[3]

    def finish(self, image: np.ndarray, params: Params) -> np.ndarray:
        kernel = params[4] if len(params) > 4 else self.interpolation
        return images.resize(image, self.size, self.size, kernel=kernel)

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        return self.finish(images.crop(image, self.box(params)), params)


class Resize:
    """The short side to ``size``, the other in proportion (rounded down, as torchvision)."""

    def __init__(self, size: int, exact: bool = False, kernel: str = "bilinear"):
        self.size, self.exact, self.kernel = size, exact, kernel

    def params(self, key: int, height: int, width: int) -> tuple[int, int]:
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        return images.resize(image, *params, exact=self.exact, kernel=self.kernel)


class RandomShortSide:
    """The short side to a length drawn uniformly from ``sizes``, both ends included (He et al. 2015, section 3.4).

    params: (height, width) of the resized image.
    """

    def __init__(self, sizes: Sequence[int] = (256, 480)):
        self.low, self.high = sizes

    def params(self, key: int, height: int, width: int) -> tuple[int, int]:
        size = self.low + int(draws.integers(draws.extend_key(key, 0), self.high - self.low + 1))
        return Resize(size).params(key, height, width)

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        return images.resize(image, *params)


class RandomCrop:
    """A size x size square at a random place. params: (top, left). A smaller image stays as it is."""

    def __init__(self, size: int):
        self.size = size

    def params(self, key: int, height: int, width: int) -> tuple[int, int]:
        room = (max(side - self.size, 0) + 1 for side in (height, width))
        top, left = (draws.integers(draws.extend_key(key, k), n) for k, n in enumerate(room))
        return int(top), int(left)

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        top, left = params
        return image[top : top + self.size, left : left + self.size]


class CentreCrop:
    """The central size x size; a smaller image is padded with zeros."""

    def __init__(self, size: int):
        self.size = size

    def params(self, key: int, height: int, width: int) -> tuple[int, int]:
        return round((max(height, self.size) - self.size) / 2.0), round((max(width, self.size) - self.size) / 2.0)

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        short = [max(self.size - side, 0) for side in image.shape[:2]]
        if any(short):
            image = np.pad(image, [*((s // 2, (s + 1) // 2) for s in short), (0, 0)])
        top, left = params
        return image[top : top + self.size, left : left + self.size]


class PadCrop:
    """Zeros around the image, then a crop of its own size at a random place (He et al. 2015, section 4.2).

    params: (top, left) in the padded image. Moving an image by up to n pixels, the ``shift`` of a recipe, is the same
    with a padding of n.
    """

    def __init__(self, padding: int):
        self.padding = padding

    def params(self, key: int, height: int, width: int) -> tuple[int, int]:
        n = 2 * self.padding + 1
        top, left = (draws.integers(draws.extend_key(key, k), n) for k in range(2))
        return int(top), int(left)

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        top, left = params
        h, w = image.shape[:2]
        p = self.padding
        return np.pad(image, ((p, p), (p, p), (0, 0)))[top : top + h, left : left + w]

    def batch(self, batch: np.ndarray, keys: np.ndarray) -> np.ndarray:
        n, h, w, channels = batch.shape
        p = self.padding
        padded = np.zeros((n, h + 2 * p, w + 2 * p, channels), np.uint8)
        padded[:, p : p + h, p : p + w] = batch
        top, left = (draws.integers(draws.extend(keys, k), 2 * p + 1) for k in range(2))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(1, 2))  # type: ignore[call-overload]
        return windows[np.arange(n), top, left].transpose(0, 2, 3, 1)


class Flip:
    """Mirrored left to right with probability p. params: (whether,)."""

    def __init__(self, p: float = 0.5):
        self.p = p

    def params(self, key: int, height: int, width: int) -> tuple[bool]:
        return (bool(draws.uniform(draws.extend_key(key, 0)) < self.p),)

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        return images.mirrored(image) if params[0] else image

    def batch(self, batch: np.ndarray, keys: np.ndarray) -> np.ndarray:
        flipped = np.asarray(draws.uniform(draws.extend(keys, 0)) < self.p)
        return np.where(flipped[:, None, None, None], batch[:, :, ::-1], batch)
