"""Augmentations: ``params = op.params(key, height, width)``, then ``op.apply(image, params)``, both pure.

A key is mix(seed, AUGMENT, epoch, position, copy, index of the operation); parameter k of an operation is drawn from
extend(key, k). No generator is read, so threads, ranks and restarts cannot matter. Images are uint8 [H, W, C] arrays;
the heavy parts (decode, resize) release the GIL. In distribution each operation equals torchvision's of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np

from restrain import draws
from restrain.data import images
from restrain.errors import UserError, nearest

Params = tuple[Any, ...]


class Op(Protocol):
    """One operation of a pipeline."""

    def params(self, key: int, height: int, width: int) -> Params: ...

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray: ...


class BatchOp(Op, Protocol):
    """An operation that can also do many images of one size at once, with the same result as one by one."""

    def batch(self, batch: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """batch uint8 [n, H, W, C], keys uint64 [n]; the result may be ``batch`` or a view of it."""
        ...


class RandomResizedCrop:
    """A crop of random area and aspect ratio, resized to size x size (Szegedy et al. 2014, section 6).

    params: (top, left, height, width) of the crop. The area's share is uniform in ``scale``, the ratio log-uniform in
    ``ratio``; ten tries, then the central crop of the nearest legal ratio.
    """

    def __init__(self, size: int, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)):
        self.size, self.scale, self.ratio = size, tuple(scale), tuple(ratio)

    def params(self, key: int, height: int, width: int) -> tuple[int, int, int, int]:
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

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        top, left, h, w = params
        return images.resize(image[top : top + h, left : left + w], self.size, self.size)


class Resize:
    """The short side to ``size``, the other in proportion (rounded down, as torchvision)."""

    def __init__(self, size: int, exact: bool = False):
        self.size, self.exact = size, exact

    def params(self, key: int, height: int, width: int) -> tuple[int, int]:
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray:
        return images.resize(image, *params, exact=self.exact)


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
        return image[:, ::-1] if params[0] else image

    def batch(self, batch: np.ndarray, keys: np.ndarray) -> np.ndarray:
        flipped = np.asarray(draws.uniform(draws.extend(keys, 0)) < self.p)
        return np.where(flipped[:, None, None, None], batch[:, :, ::-1], batch)


class Pipeline:
    """Stored data to a uint8 [size, size, channels] row of a batch: decode, the operations in order, a size check.

    The size is known before the first read, since buffers are allocated once.
    """

    def __init__(self, ops: Sequence[Op], size: int, channels: int = 3, decoder: str = "pil"):
        self.ops, self.size, self.channels, self.decoder = list(ops), size, channels, decoder
        self.shape = (size, size, channels)
        self.batched = all(hasattr(op, "batch") for op in self.ops)

    def __call__(self, data: bytes | np.ndarray, key: int, out: np.ndarray) -> None:
        """Writes the augmented image into ``out``. Raises DecodeError, or UserError for an image of another size."""
        image = data if isinstance(data, np.ndarray) else images.decode(data, self.decoder)
        for index, op in enumerate(self.ops):
            height, width = image.shape[:2]
            image = op.apply(image, op.params(draws.extend_key(key, index), height, width))
        self._check(image.shape)
        out[...] = image

    def batch(self, stored: np.ndarray, keys: np.ndarray, out: np.ndarray) -> None:
        """The same for images of one size, uint8 [n, H, W, C], and keys uint64 [n]. Only where ``batched``."""
        for index, op in enumerate(self.ops):
            stored = cast(BatchOp, op).batch(stored, draws.extend(keys, index))
        self._check(stored.shape[1:])
        out[...] = stored

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            h, w, channels = shape
            if channels != self.channels:
                raise UserError(f"The images have {channels} channel(s), but model.in_chans={self.channels}.")
            raise UserError(
                f"An image is {w} x {h} pixels after its augmentations, but the resolution is {self.size}: images of a "
                f"batch have one size. Put a resizing step into data.augment (random_resized_crop, or resize and "
                f"centre_crop; resolution.eval_resize for evaluation), or set resolution to the size of the images."
            )


def train_pipeline(ops: Sequence[Any], size: int, *, channels: int = 3, decoder: str = "pil") -> Pipeline:
    """The pipeline of ``data.augment`` (sections with ``.name`` and the operation's fields) at ``resolution.train``."""
    return Pipeline([_build(op, size) for op in ops], size, channels, decoder)


def eval_pipeline(size: int, resize: int | None, *, channels: int = 3, decoder: str = "pil") -> Pipeline:
    """Short side to ``resolution.eval_resize``, central crop of ``resolution.eval``; without resize, as stored.

    With the PIL decoder bit-equal to torchvision's Resize and CenterCrop on PIL images.
    """
    ops: list[Op] = [] if resize is None else [Resize(resize, exact=decoder == "pil"), CentreCrop(size)]
    return Pipeline(ops, size, channels, decoder)


def _build(op: Any, size: int) -> Op:
    table = {
        "random_resized_crop": lambda: RandomResizedCrop(size, op.scale, op.ratio),
        "resize": lambda: Resize(op.size),
        "centre_crop": lambda: CentreCrop(op.size),
        "pad_crop": lambda: PadCrop(op.padding),
        "shift": lambda: PadCrop(op.pixels),
        "flip": lambda: Flip(op.p),
    }
    if op.name not in table:
        raise UserError(
            f"data.augment: unknown operation {op.name!r}.{nearest(op.name, table)} Known: {', '.join(table)}."
        )
    return table[op.name]()
