"""The image operations that RandAugment and its relatives choose from, at a given argument, by PIL.

PIL does the arithmetic because the published numbers were reached with it: on photographs every operation here is
bit-equal to torchvision's and timm's of the same name (tests/data/test_operations.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

KERNELS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Step:
    """One operation to apply: its name, its argument, and the kernel of those that move pixels."""

    name: str
    argument: float = 0.0
    kernel: str = "nearest"


@dataclass(frozen=True)
class _Canvas:
    """How pixels are fetched from between and from beyond others."""

    resample: Image.Resampling
    fill: tuple[int, ...] | int

    def affine(self, image: Image.Image, matrix: Sequence[float]) -> Image.Image:
        """The pixel at (x, y) is that at (a x + b y + c, d x + e y + f)."""
        return image.transform(image.size, Image.Transform.AFFINE, matrix, self.resample, fillcolor=self.fill)


Operation = Callable[[Image.Image, float, _Canvas], Image.Image]


def _posterize(image: Image.Image, bits: float, canvas: _Canvas) -> Image.Image:
    """The highest ``bits`` of each value; with none left, black, which newer PILs refuse to make."""
    dropped = 8 - min(8, max(0, int(bits)))
    return image.point([value >> dropped << dropped for value in range(256)] * len(image.getbands()))


def _solarize_add(image: Image.Image, amount: float, canvas: _Canvas) -> Image.Image:
    """Values below 128 raised by ``amount``."""
    lighter = [min(255, value + int(amount)) if value < 128 else value for value in range(256)]
    return image.point(lighter * len(image.getbands()))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, factor, canvas: kind(image).enhance(factor)


# name -> operation of (image, argument, canvas). Shear is a slope; TranslateX, TranslateY are whole pixels, in the
# forms that end in Rel shares of the side (and the other way round, as in timm); Rotate is degrees; a factor of 1
# changes nothing in Brightness, Color, Contrast, Sharpness.
OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, _, canvas: image,
    "ShearX": lambda image, slope, canvas: canvas.affine(image, (1, slope, 0, 0, 1, 0)),
    "ShearY": lambda image, slope, canvas: canvas.affine(image, (1, 0, 0, slope, 1, 0)),
    "TranslateX": lambda image, pixels, canvas: canvas.affine(image, (1, 0, -pixels, 0, 1, 0)),
    "TranslateY": lambda image, pixels, canvas: canvas.affine(image, (1, 0, 0, 0, 1, -pixels)),
    "TranslateXRel": lambda image, share, canvas: canvas.affine(image, (1, 0, share * image.width, 0, 1, 0)),
    "TranslateYRel": lambda image, share, canvas: canvas.affine(image, (1, 0, 0, 0, 1, share * image.height)),
    "Rotate": lambda image, degrees, canvas: image.rotate(degrees, canvas.resample, fillcolor=canvas.fill),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": _posterize,
    "Solarize": lambda image, threshold, canvas: ImageOps.solarize(image, threshold),  # pyright: ignore[reportArgumentType]
    "SolarizeAdd": _solarize_add,
    "AutoContrast": lambda image, _, canvas: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, canvas: ImageOps.equalize(image),
    "Invert": lambda image, _, canvas: ImageOps.invert(image),
    "Desaturate": lambda image, share, canvas: ImageEnhance.Color(image).enhance(min(1.0, max(0.0, 1.0 - share))),
    "GaussianBlur": lambda image, radius, canvas: image.filter(ImageFilter.GaussianBlur(radius)),
}
MOVING = frozenset(name for name in OPERATIONS if name.startswith(("Shear", "Translate", "Rotate")))


def to_pil(image: np.ndarray) -> Image.Image:
    """An image of uint8 [H, W, C], C being 1 or 3."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def to_array(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, C] of an image."""
    pixels = np.array(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def run(image: np.ndarray, steps: Sequence[Step], fill: Sequence[int]) -> np.ndarray:
    """``steps`` one after another; ``fill``, one value a channel, comes in from beyond the edges."""
    steps = [step for step in steps if step.name != "Identity"]
    if not steps:
        return image
    pil = to_pil(image)
    colour = tuple(fill) if len(fill) > 1 else fill[0]
    for step in steps:
        pil = OPERATIONS[step.name](pil, step.argument, _Canvas(KERNELS[step.kernel], colour))
    return to_array(pil)


def slope_of(magnitude: float) -> float:
    """A shear as torchvision has it: through the angle in degrees and back, to the last bit."""
    return math.tan(math.radians(math.degrees(math.atan(magnitude))))
