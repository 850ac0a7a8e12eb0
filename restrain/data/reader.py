"""What a data set is to the loader: a `Source` of samples addressed by (shard, j)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from restrain.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One stored sample: the encoded image (or a decoded uint8 [H, W, C] array), its label and its identity."""

    key: str
    data: bytes | np.ndarray
    label: int
    crc: int  # CRC-32 of the stored bytes that were read, so of what is decoded


class BadSample(Exception):
    """A sample that cannot be used: training replaces it, evaluation leaves it out (bit rot it refuses)."""

    def __init__(self, shard: str, j: int, key: str, reason: str, rotten: bool = False):
        super().__init__(f"sample {j} ({key}) of {shard}: {reason}")
        self.shard, self.j, self.key, self.reason = shard, j, key, reason
        self.rotten = rotten  # the stored bytes are not those that were indexed

    @property
    def text(self) -> str:
        return str(self)


class Source(Protocol):
    """A data set: shards of samples, read at random by any number of threads."""

    names: Sequence[str]  # of the shards
    counts: np.ndarray  # int64 [shards], samples of each
    classes: list[str] | None  # class names, where the set knows them
    channels: int
    fingerprint: str  # of the content, not of its place

    def crcs(self, shard: int) -> np.ndarray:
        """CRC-32 of each sample of a shard, uint32 [count]; no data are read."""
        ...

    def read(self, shard: int, j: int) -> Sample:
        """Raises BadSample, UserError (a label that the model has no class for) or WorldError."""
        ...

    def close(self) -> None: ...


class ArraySource(Source, Protocol):
    """A source whose images are decoded already and of one size, so that many can be taken at once."""

    def rows(self, shard: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images uint8 [n, H, W, C], labels int64 [n], CRC-32 uint64 [n]); the arrays are the caller's."""
        ...


def check_label(label: int, classes: int | None, where: str) -> int:
    """The label, or UserError where the model has no such class."""
    if label < 0 or (classes is not None and label >= classes):
        top = "" if classes is None else f", and model.classes={classes} allows 0 to {classes - 1}"
        raise UserError(
            f"Label {label} out of range: {where} has label {label}{top}. "
            f"Set model.classes to the number of classes of the data, or repair the label."
        )
    return label
