"""What is in a set: sizes, classes, copies of one image, and the mean and standard deviation that ``data`` wants."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from restrain.data.checksum import crc32
from restrain.data.images import MAGIC, DecodeError, Encoded, decode
from restrain.data.indexing import Reporter
from restrain.data.reader import BadSample, Source

CHUNK = 64  # samples that a thread looks at in one go
SHARES = (0, 5, 50, 95, 100)  # percentiles


@dataclass
class Stats:
    """samples: read, of ``of`` in the set. pixels: decoded. mean, std: of channels, pixels being 0 to 1."""

    of: int
    samples: int = 0
    decoded: int = 0
    bad: list[str] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    sides: list[tuple[int, int]] = field(default_factory=list)  # (width, height)
    formats: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    copies: list[list[str]] = field(default_factory=list)  # keys of images with the same bytes
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        sizes = np.array(self.sides or [(0, 0)])
        return {
            "of": self.of,
            "samples": self.samples,
            "decoded": self.decoded,
            "mean": self.mean,
            "std": self.std,
            "width": spread(sizes[:, 0]),
            "height": spread(sizes[:, 1]),
            "bytes": spread(self.bytes),
            "formats": dict(self.formats.most_common()),
            "classes": {str(label): count for label, count in sorted(self.labels.items())},
            "copies": self.copies,
            "bad": self.bad,
        }


def spread(values: Iterable[int]) -> dict[str, int]:
    """Percentile -> value."""
    found = np.array(list(values) or [0])
    return {f"{share}%": int(np.percentile(found, share)) for share in SHARES}


def measure(source: Source, *, most: int | None, pictures: int, workers: int, reporter: Reporter) -> Stats:
    """Read a set. most: samples, evenly spread over it; None: all. pictures: how many of them are decoded, evenly."""
    starts = np.concatenate(([0], np.cumsum(source.counts)))
    total = int(starts[-1])
    chosen = np.unique(np.linspace(0, total - 1, min(total, most or total)).astype(np.int64))
    decoded = set(np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), pictures)).astype(int)).tolist())
    work = _Work(source, starts, chosen, decoded)
    with ThreadPoolExecutor(workers) as pool:
        for done in pool.map(work.chunk, range(0, len(chosen), CHUNK)):
            reporter.progress(done, len(chosen))
    return work.finished(total)


class _Work:
    """What all threads add to."""

    def __init__(self, source: Source, starts: np.ndarray, chosen: np.ndarray, decoded: set[int]):
        self._source, self._starts, self._chosen, self._decoded = source, starts, chosen, decoded
        self._rows: dict[int, tuple] = {}
        self._sums = np.zeros((3, source.channels))  # count, sum, sum of squares of each image's means
        self._lock = threading.Lock()

    def chunk(self, first: int) -> int:
        last = min(first + CHUNK, len(self._chosen))
        rows, sums = {}, np.zeros_like(self._sums)
        for at in range(first, last):
            rows[at] = self._sample(at, sums)
        with self._lock:
            self._rows |= rows
            self._sums += sums
        return last

    def _sample(self, at: int, sums: np.ndarray) -> tuple:
        number = int(self._chosen[at])
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        try:
            sample = self._source.read(shard, number - int(self._starts[shard]))
            data = sample.data
            if at in self._decoded:
                pixels = data if isinstance(data, np.ndarray) else decode(data, "pil")
                _add(pixels, sums)
                side = (pixels.shape[1], pixels.shape[0])
            else:
                side = None
        except (BadSample, DecodeError) as error:
            return ("bad", f"sample {number}: {error}" if isinstance(error, DecodeError) else str(error))
        raw = data.tobytes() if isinstance(data, np.ndarray) else data
        return ("good", sample.key, sample.label, len(raw), crc32(raw), _format(data), side, number)

    def finished(self, total: int) -> Stats:
        stats, alike = Stats(total), {}
        for at in sorted(self._rows):
            row = self._rows[at]
            stats.samples += 1
            if row[0] == "bad":
                stats.bad.append(row[1])
                continue
            _, key, label, size, crc, form, side, number = row
            stats.bytes.append(size)
            stats.labels[label] += 1
            stats.formats[form] += 1
            if side is not None:
                stats.decoded += 1
                stats.sides.append(side)
            alike.setdefault((size, crc), []).append((key, number))
        stats.copies = [keys for some in alike.values() if len(some) > 1 for keys in self._same(some)]
        count, total_sum, squares = self._sums
        if count.all():
            mean = total_sum / count
            stats.mean = [round(float(x), 4) for x in mean]
            stats.std = [round(float(x), 4) for x in np.sqrt(np.maximum(0, squares / count - mean**2))]
        return stats

    def _same(self, some: list[tuple[str, int]]) -> list[list[str]]:
        """Of images of one size and CRC those whose bytes are the same."""
        by_content: dict[bytes, list[str]] = {}
        for key, number in some:
            shard = int(np.searchsorted(self._starts, number, side="right")) - 1
            data = self._source.read(shard, number - int(self._starts[shard])).data
            content = data.tobytes() if isinstance(data, np.ndarray) else data
            by_content.setdefault(hashlib.sha256(content).digest(), []).append(key)
        return [keys for keys in by_content.values() if len(keys) > 1]


def _add(pixels: np.ndarray, sums: np.ndarray) -> None:
    """Each image counts once, whatever its size: the mean over images of its pixels' mean and mean square."""
    scaled = pixels.astype(np.float32) / 255
    sums[0] += 1
    sums[1] += scaled.mean((0, 1), dtype=np.float64)
    sums[2] += np.square(scaled).mean((0, 1), dtype=np.float64)


def _format(data: Encoded | np.ndarray) -> str:
    if isinstance(data, np.ndarray):
        return "array"
    head = bytes(data[:4])
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "other").upper()
