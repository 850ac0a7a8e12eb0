"""What an augmentation is: ``params = op.params(key, height, width)``, then ``op.apply(image, params)``, both pure.

A key is mix(seed, AUGMENT, epoch, position, copy, index of the operation); parameter k of an operation is drawn from
extend(key, k). No generator is read, so threads, ranks and restarts cannot matter. Images are uint8 [H, W, C] arrays
from the first operation to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from restrain import draws

Params = tuple[Any, ...]


class Op(Protocol):
    """One operation of a pipeline."""

    def params(self, key: int, height: int, width: int) -> Params: ...

    def apply(self, image: np.ndarray, params: Params) -> np.ndarray: ...


class CropOp(Op, Protocol):
    """An operation that needs only a part of the image: as the first one, the rest need not be decoded.

    ``op.apply(image, params)`` is ``op.finish(crop(image, op.box(params)), params)``.
    """

    def box(self, params: Params) -> tuple[int, int, int, int]:
        """(top, left, height, width) of what it needs."""
        ...

    def finish(self, image: np.ndarray, params: Params) -> np.ndarray:
        """image: the pixels of the box."""
        ...


class BatchOp(Op, Protocol):
    """An operation that can also do many images of one size at once, with the same result as one by one."""

    def batch(self, batch: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """batch uint8 [n, H, W, C], keys uint64 [n]; the result may be ``batch`` or a view of it."""
        ...


@dataclass(frozen=True)
class Frame:
    """What operations are built for: the side of the final image, and ``data.mean`` and ``data.std`` (of 0 to 1)."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean as a pixel: normalised, it is within half a grey level of zero."""
        return tuple(min(255, round(255 * share)) for share in self.mean)


def between(key: int, bounds: Sequence[float]) -> float:
    """Uniform in [low, high)."""
    return bounds[0] + float(draws.uniform(key)) * (bounds[1] - bounds[0])


def below(key: int, n: int) -> int:
    """A uniform integer of [0, n)."""
    return int(draws.integers(key, n))
