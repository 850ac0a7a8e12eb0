"""From stored data to a row of a batch: decoding, then the operations of the recipe in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import numpy as np

from restrain import draws
from restrain.data import images
from restrain.data.augment.base import BatchOp, CropOp, Frame, Op
from restrain.data.augment.colour import ColorJitter, Lighting
from restrain.data.augment.erasing import RandomErasing
from restrain.data.augment.geometry import (
    CentreCrop,
    Flip,
    PadCrop,
    RandomCrop,
    RandomResizedCrop,
    RandomShortSide,
    Resize,
)
from restrain.data.augment.policies import AutoAugment, RandAugment, ThreeAugment, TimmRandAugment, TrivialAugment
from restrain.data.laps import Lap
from restrain.errors import UserError, nearest
from restrain.recipe.policy import parse_policy

GREY_LEVEL = 0.5  # of a channel whose mean nobody gave


class Pipeline:
    """Stored data to a uint8 [size, size, channels] row of a batch: decode, the operations in order, a size check.

    The size is known before the first read, since buffers are allocated once.
    """

    def __init__(self, ops: Sequence[Op], size: int, channels: int = 3, decoder: str = "pil"):
        self.ops, self.size, self.channels, self.decoder = list(ops), size, channels, decoder
        self.shape = (size, size, channels)
        self.batched = all(hasattr(op, "batch") for op in self.ops)
        self._crops = bool(self.ops) and hasattr(self.ops[0], "box")

    def at(self, size: int) -> Pipeline:
        """The same pipeline for images of another side; crops that are resized follow."""
        ops = [op.at(size) if isinstance(op, RandomResizedCrop) else op for op in self.ops]
        return Pipeline(ops, size, self.channels, self.decoder)

    def __call__(self, data: images.Encoded | np.ndarray, key: int, out: np.ndarray, lap: Lap | None = None) -> None:
        """Writes the augmented image into ``out``. Raises DecodeError, or UserError for an image of another size."""
        image, done = (data, 0) if isinstance(data, np.ndarray) else self._decoded(data, key, lap)
        for index in range(done, len(self.ops)):
            op = self.ops[index]
            height, width = image.shape[:2]
            image = op.apply(image, op.params(draws.extend_key(key, index), height, width))
        if image.shape != self.shape:
            self._refuse(image.shape)
        if lap is not None:
            lap.lap("augment")
        out[...] = image
        if lap is not None:
            lap.lap("collate")

    def _decoded(self, data: images.Encoded, key: int, lap: Lap | None) -> tuple[np.ndarray, int]:
        """(image, operations done): a first operation that needs a part of the image has that part decoded alone."""
        stored = images.opened(data, self.decoder)
        first = cast(CropOp, self.ops[0]) if self._crops else None
        params = first.params(draws.extend_key(key, 0), stored.height, stored.width) if first else ()
        pixels = stored.pixels(first.box(params) if first else None)
        if lap is not None:
            lap.lap("decode")
        return (first.finish(pixels, params), 1) if first else (pixels, 0)

    def batch(self, stored: np.ndarray, keys: np.ndarray, out: np.ndarray) -> None:
        """The same for images of one size, uint8 [n, H, W, C], and keys uint64 [n]. Only where ``batched``."""
        for index, op in enumerate(self.ops):
            stored = cast(BatchOp, op).batch(stored, draws.extend(keys, index))
        if stored.shape[1:] != self.shape:
            self._refuse(stored.shape[1:])
        out[...] = stored

    def _refuse(self, shape: tuple[int, ...]) -> NoReturn:
        h, w, channels = shape
        if channels != self.channels:
            raise UserError(f"The images have {channels} channel(s), but model.in_chans={self.channels}.")
        raise UserError(
            f"An image is {w} x {h} pixels after its augmentations, but the resolution is {self.size}: images of a "
            f"batch have one size. Put a resizing step into data.augment (random_resized_crop, or resize and "
            f"centre_crop; resolution.eval_resize for evaluation), or set resolution to the size of the images."
        )


def train_pipeline(
    ops: Sequence[Any],
    size: int,
    *,
    channels: int = 3,
    decoder: str = "pil",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Pipeline:
    """The pipeline of ``data.augment`` (sections with ``.name`` and the operation's fields) at ``resolution.train``.

    mean, std: ``data.mean`` and ``data.std``, which some operations fill with; without them mid-grey.
    """
    frame = Frame(size, tuple(mean or (GREY_LEVEL,) * channels), tuple(std or (GREY_LEVEL,) * channels))
    return Pipeline([_build(op, frame) for op in ops], size, channels, decoder)


def eval_pipeline(
    size: int, resize: int | None, *, channels: int = 3, decoder: str = "pil", kernel: str = "bilinear"
) -> Pipeline:
    """Short side to ``resolution.eval_resize``, central crop of ``resolution.eval``; without resize, as stored.

    Bit-equal to torchvision's Resize and CenterCrop on PIL images, with any decoder that is bit-equal to PIL's.
    """
    ops: list[Op] = [] if resize is None else [Resize(resize, True, kernel), CentreCrop(size)]
    return Pipeline(ops, size, channels, decoder)


def _rand_augment(op: Any, frame: Frame) -> Op:
    if op.policy is not None:
        return TimmRandAugment(parse_policy(op.policy), frame.fill)
    return RandAugment(op.ops, op.magnitude, channels=len(frame.mean))


BUILDERS: dict[str, Callable[[Any, Frame], Op]] = {
    "random_resized_crop": lambda op, frame: RandomResizedCrop(frame.size, op.scale, op.ratio, op.interpolation),
    "resize": lambda op, frame: Resize(op.size),
    "random_short_side": lambda op, frame: RandomShortSide(op.sizes),
    "random_crop": lambda op, frame: RandomCrop(op.size),
    "centre_crop": lambda op, frame: CentreCrop(op.size),
    "pad_crop": lambda op, frame: PadCrop(op.padding),
    "shift": lambda op, frame: PadCrop(op.pixels),
    "flip": lambda op, frame: Flip(op.p),
    "rand_augment": _rand_augment,
    "trivial_augment": lambda op, frame: TrivialAugment(channels=len(frame.mean)),
    "auto_augment": lambda op, frame: AutoAugment(op.policy, channels=len(frame.mean)),
    "three_augment": lambda op, frame: ThreeAugment(channels=len(frame.mean)),
    "color_jitter": lambda op, frame: ColorJitter(op.brightness, op.contrast, op.saturation, op.hue),
    "lighting": lambda op, frame: Lighting(op.std),
    "random_erasing": lambda op, frame: RandomErasing(frame, op.p, op.scale, op.ratio, op.fill),
}


def _build(op: Any, frame: Frame) -> Op:
    if op.name not in BUILDERS:
        raise UserError(
            f"data.augment: unknown operation {op.name!r}.{nearest(op.name, BUILDERS)} Known: {', '.join(BUILDERS)}."
        )
    return BUILDERS[op.name](op, frame)
