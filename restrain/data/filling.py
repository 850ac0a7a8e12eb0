"""What both loaders share: buffers, the rows to fill them with, and what is done about bad samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from restrain.data.images import DecodeError
from restrain.data.laps import Lap
from restrain.data.mix import MixDraw
from restrain.data.reader import BadSample, Sample, Source
from restrain.data.ring import Ring
from restrain.errors import RestrainError, WorldError

TRIES = 8  # replacements tried for one bad sample
MIN_BAD = 10  # bad samples that are always allowed
READ_AHEAD_BYTES = 256 << 20


class Rows(Protocol):
    """What turns stored data into rows of a batch: the pipelines of images, and that of tokens.

    Beside these it may have ``dtype`` (of a row), ``label_shape`` and ``label_dtype``; images are uint8 with one int64.
    """

    size: int  # of a side, or tokens
    batched: bool  # whether ``batch`` can be used

    @property
    def shape(self) -> tuple[int, ...]: ...  # of a row: [size, size, C], or one axis

    def at(self, size: int) -> Rows: ...

    def __call__(self, data: Any, key: int, out: np.ndarray, lap: Lap | None = None) -> None: ...

    def batch(self, stored: np.ndarray, keys: np.ndarray, out: np.ndarray) -> None: ...


class Buffer:
    """One slot of a ring: rows and labels, as torch tensors and as numpy views of the same memory.

    Made once, for the largest images; those of a smaller side take its first elements.
    """

    def __init__(self, count: int, pipeline: Rows, pin: bool, shared: bool = False, device: torch.device | None = None):
        """pin: page-locked. shared: in memory that processes forked from here on see as well. device: where the rows
        are made, if not in the host's memory; labels always are there."""
        self._count = count
        dtype, label_dtype = getattr(pipeline, "dtype", torch.uint8), getattr(pipeline, "label_dtype", torch.int64)
        size, locked = count * math.prod(pipeline.shape), pin and device is None
        self._elements = torch.empty(size, dtype=dtype, pin_memory=locked, device=device)
        self.labels = torch.empty((count, *getattr(pipeline, "label_shape", ())), dtype=label_dtype, pin_memory=pin)
        if shared:
            self._elements.share_memory_()
            self.labels.share_memory_()
        self.label_rows = self.labels.numpy()

    def rows(self, pipeline: Rows) -> np.ndarray:
        """[rows, *shape of the pipeline], to be written to: of images uint8 [rows, size, size, C]."""
        return self.stored(pipeline).numpy()

    def tensor(self, pipeline: Rows) -> torch.Tensor:
        """The rows as they are handed over: images uint8 [rows, C, size, size], channels-last; others as they are."""
        stored = self.stored(pipeline)
        return stored.permute(0, 3, 1, 2) if stored.ndim == 4 else stored

    def stored(self, pipeline: Rows) -> torch.Tensor:
        """[rows, *shape of the pipeline], where they are made."""
        shape = (self._count, *pipeline.shape)
        return self._elements[: math.prod(shape)].view(shape)


@dataclass
class Job:
    """Rows to fill: which samples, with which keys; and what filling found out."""

    step: int
    epoch: int
    shard: np.ndarray  # int64 [rows]
    j: np.ndarray  # int64 [rows]
    keys: np.ndarray  # uint64 [rows]
    pipeline: Rows  # at the side of this job's images
    prefix: np.ndarray = field(init=False)  # uint64 [rows]
    index: np.ndarray | None = None  # int64 [rows], in evaluation
    valid: np.ndarray | None = None  # bool [rows], in evaluation
    mixes: list[MixDraw | None] = field(default_factory=list)  # one a micro-batch
    events: list[tuple[int, Any]] = field(default_factory=list)  # (row, Replaced or Bad), in the order of arrival

    def __post_init__(self):
        self.prefix = np.empty(len(self.shard), np.uint64)

    @property
    def rows(self) -> int:
        return len(self.shard)

    def sorted_events(self) -> list[Any]:
        return [event for _, event in sorted(self.events, key=lambda pair: pair[0])]


def no_usable(source: Source, shard: int, first: BadSample | None) -> WorldError:
    """What is raised where neither a sample nor any of those tried in its place can be used."""
    return WorldError(
        f"No usable sample: {first}; and the {TRIES} samples after it are bad too. Restore {source.names[shard]} from "
        f"its origin, or leave it out of the data set."
    )


def read_sample(source: Source, shard: int, j: int) -> Sample:
    """One sample as it is stored. Whatever fails names the shard and the sample."""
    with _named(source, shard, f"sample {j}"):
        return source.read(shard, j)


def read_into(
    source: Source, pipeline: Rows, shard: int, j: int, key: int, out: np.ndarray, lap: Lap | None = None
) -> Sample:
    """Read, decode and augment one sample into ``out``. Whatever fails names the shard and the sample."""
    sample = read_sample(source, shard, j)
    if lap is not None:
        lap.lap("read")
    with _named(source, shard, f"sample {j} ({sample.key})"):
        try:
            pipeline(sample.data, key, out, lap)
        except DecodeError as error:
            raise BadSample(source.names[shard], j, sample.key, str(error)) from error
    return sample


@contextmanager
def _named(source: Source, shard: int, where: str) -> Iterator[None]:
    try:
        yield
    except BadSample:
        raise
    except RestrainError as error:
        if error.placed:
            raise
        raise type(error)(f"{error} [{where} of {source.names[shard]}]") from error
    except Exception as error:
        raise WorldError(f"Reading {where} of {source.names[shard]} failed: {type(error).__name__}: {error}") from error


def check_budget(bad: int, seen: int, max_bad: float, events: list[Any], done: str, names: Sequence[str]) -> None:
    """Raises WorldError when more samples were bad than ``max_bad`` of those seen. names: of the shards."""
    if events and bad > max(MIN_BAD, max_bad * seen):
        last = events[-1]
        raise WorldError(
            f"Too many bad samples: {bad} of {seen} had to be {done}; data.max_bad={max_bad:g} allows "
            f"{max(MIN_BAD, int(max_bad * seen))}. The last was sample {last.j} ({last.key}) of {names[last.shard]}: "
            f"{last.reason}. Repair the data, or raise data.max_bad."
        )


def check_left_out(bad: int, samples: int, max_bad: float) -> None:
    """Raises WorldError when all ranks together left out more of an evaluation than ``max_bad`` allows."""
    if bad > max(MIN_BAD, max_bad * samples):
        raise WorldError(
            f"Too many bad samples: {bad} of {samples} had to be left out of the evaluation; data.max_bad={max_bad:g} "
            f"allows {max(MIN_BAD, int(max_bad * samples))}. They are listed in bad_samples*.jsonl of the run. Repair "
            f"the data, or raise data.max_bad."
        )


def batched(source: Source, pipeline: Rows) -> bool:
    return pipeline.batched and hasattr(source, "rows")


def chunk_rows(rows: int, threads: int) -> int:
    return max(1, min(16, rows // (4 * threads)))


def make_slots(
    rows: int, pipeline: Rows, pin: bool, jobs: int, shared: bool = False, device: torch.device | None = None
) -> list[Buffer]:
    """Buffers for the batches in use and as many read ahead as a bound on memory allows."""
    row = math.prod(pipeline.shape) * getattr(pipeline, "dtype", torch.uint8).itemsize
    ahead = min(16, max(2, READ_AHEAD_BYTES // (rows * row)), max(1, jobs))
    return [Buffer(rows, pipeline, pin, shared, device) for _ in range(Ring.HELD + ahead)]
