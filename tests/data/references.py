"""What torchvision and timm draw: their own code with its generators, the image operations replaced by a notebook.

Used by the tests of the distributions and by docs/figures/augmentations.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing as TimmErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms
from torchvision.transforms import autoaugment

Drawn = list[tuple[str, float]]  # operations of one image and their arguments


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The three generators that the references read, set and put back."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])


def torchvision_policy(transform: torch.nn.Module, n: int, side: int, seed: int = 0) -> list[Drawn]:
    """Operations and magnitudes of n images of side x side."""
    image, drawn = Image.new("RGB", (side, side)), []
    real = autoaugment._apply_op

    def note(image: Any, name: str, magnitude: float, **_: Any) -> Any:
        drawn[-1].append((name, magnitude))
        return image

    autoaugment._apply_op = note
    try:
        with seeded(seed):
            for _ in range(n):
                drawn.append([])
                transform(image)
    finally:
        autoaugment._apply_op = real
    return drawn


def timm_policy(text: str, n: int, seed: int = 0) -> list[Drawn]:
    """Operations and arguments of n images, by timm's short form."""
    make = rand_augment_transform if text.startswith("rand") else auto_augment_transform
    transform, drawn = make(text, {"img_mean": (124, 116, 104)}), []
    inner = transform.ops if text.startswith("rand") else [op for policy in transform.policy for op in policy]
    for op in inner:
        op.aug_fn = _noting(drawn, op.name, op.aug_fn.__name__)
    with seeded(seed):
        for _ in range(n):
            drawn.append([])
            transform(None)
    return drawn


def _noting(drawn: list[Drawn], name: str, function: str) -> Callable[..., None]:
    def note(image: Any, *arguments: float, **_: Any) -> None:
        argument = arguments[0] if arguments else 0.0
        if function == "gaussian_blur_rand":
            argument = random.uniform(0.1, 2.0 * argument)
        drawn[-1].append((name.removesuffix("Increasing").removesuffix("Rand"), argument))

    return note


def color_jitter(n: int, *ranges: float, seed: int = 0) -> list[tuple[list[int], list[float | None]]]:
    jitter = transforms.ColorJitter(*ranges)
    settings = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    with seeded(seed):
        found = [jitter.get_params(*settings) for _ in range(n)]
    return [(order.tolist(), list(factors)) for order, *factors in found]


def erasing_boxes(
    n: int, side: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int = 0
) -> np.ndarray:
    """(top, left, height, width) of torchvision's rectangles, int [n, 4]."""
    image = torch.empty(3, side, side)
    with seeded(seed):
        found = [transforms.RandomErasing.get_params(image, scale, ratio, [0.0]) for _ in range(n)]
    return np.array([box[:4] for box in found])


def timm_erasing_boxes(n: int, side: int, seed: int = 0) -> np.ndarray:
    """The same of timm's, found in what it erased."""
    erase, boxes = TimmErasing(probability=1.0, device="cpu"), []
    with seeded(seed):
        for _ in range(n):
            gone = (erase(torch.ones(1, side, side))[0] == 0).numpy()
            down, across = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
            boxes.append((down[0], across[0], len(down), len(across)) if len(down) else (0, 0, side, side))
    return np.array(boxes)


def crops(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(top, left, height, width) of timm's random crops."""
    image = Image.new("RGB", (width, height))
    with seeded(seed):
        return np.array(
            [RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)]
        )
