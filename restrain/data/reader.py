"""What a data set is to the loader: a `Source` of samples addressed by (shard, j); and its bytes, a `Store`."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from restrain.errors import UserError, WorldError


@dataclass(frozen=True)
class Sample:
    """One stored sample: the encoded image (or a decoded uint8 [H, W, C] array), its label and its identity."""

    key: str
    data: bytes | memoryview | np.ndarray
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

    @property
    def names(self) -> Sequence[str]: ...  # of the shards

    @property
    def counts(self) -> np.ndarray: ...  # int64 [shards], samples of each

    @property
    def classes(self) -> Sequence[str] | None: ...  # class names, where the set knows them

    @property
    def channels(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...  # of the content, not of its place

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
        error = UserError(
            f"Label {label} out of range: {where} has label {label}{top}. "
            f"Set model.classes to the number of classes of the data, or repair the label."
        )
        error.placed = True
        raise error
    return label


class Store(Protocol):
    """Where shards lie. Some also have ``expect(shards)``: what will be read soon, to be fetched before."""

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes of a shard, or WorldError. Called by many threads at once."""
        ...

    def close(self) -> None: ...


class LocalStore:
    """Local files, kept open (the ``keep`` last used), each checked to have its indexed size when it is opened."""

    def __init__(self, root: str | Path, names: Sequence[str], sizes: Sequence[int] | np.ndarray, keep: int = 128):
        self.root, self.names, self.sizes, self.keep = Path(root), names, sizes, keep
        self._open: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, length: int) -> bytes:
        with self._descriptor(shard) as descriptor:
            try:
                data = os.pread(descriptor, length, offset)
            except OSError as error:
                raise WorldError(f"{self.path(shard)} cannot be read: {error.strerror}.") from error
        if len(data) != length:
            raise WorldError(
                f"{self.path(shard)} ended {length - len(data)} bytes early while it was read: something cut it short "
                f"just now. Restore it from its origin."
            )
        return data

    def close(self) -> None:
        with self._lock:
            for file in self._open.values():
                os.close(file.descriptor)
            self._open.clear()

    def path(self, shard: int) -> Path:
        return self.root / self.names[shard]

    @contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        """The shard's descriptor, which nobody closes while it is in use."""
        with self._lock:
            if shard not in self._open:
                self._open[shard] = _File(self._open_checked(shard))
            file = self._open[shard]
            self._open.move_to_end(shard)
            file.users += 1
            idle = [s for s, f in self._open.items() if f.users == 0] if len(self._open) > self.keep else []
            for old in idle[: len(self._open) - self.keep]:
                os.close(self._open.pop(old).descriptor)
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.users -= 1

    def _open_checked(self, shard: int) -> int:
        path = self.path(shard)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WorldError(f"{path} cannot be opened: {error.strerror}. Restore it from its origin.") from error
        size = os.fstat(descriptor).st_size
        if size != self.sizes[shard]:
            os.close(descriptor)
            raise WorldError(
                f"{path} has {size} bytes, its index says {self.sizes[shard]}: it was cut short or changed. Restore it "
                f"from its origin, or, if it was changed on purpose, run: restrain data index {self.root}"
            )
        return descriptor


@dataclass
class _File:
    descriptor: int
    users: int = 0
