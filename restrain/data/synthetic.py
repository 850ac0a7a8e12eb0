"""Sets that are made up, of any size: shards of pictures for timing what reads them, or an index alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from restrain import draws
from restrain.data import index
from restrain.data.index import Index
from restrain.data.manifest import Entries, Entry, Names
from restrain.data.packing.writing import Tar

Sample = tuple[str, list[tuple[str, bytes]]]
"""Key, and (extension, content) of each file."""
PURPOSE = draws.name_key("restrain data synth")
POOL = 64  # different pictures; more of them would only take time
PER_SHARD = 10_000  # samples of a shard of an index alone
QUALITY = 90


def write_shards(
    place: Path,
    samples: int,
    *,
    width: int = 500,
    height: int = 375,
    classes: int = 1000,
    shard_bytes: int = 128_000_000,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Index:
    """``train-*.tar`` with their index: pictures of smooth colours with noise, about as large as photographs of that
    size, each with its label. The same arguments give the same bytes."""
    place.mkdir(parents=True, exist_ok=True)
    pool = [_picture(seed, number, width, height) for number in range(min(samples, POOL))]
    per = max(1, shard_bytes // (2048 + sum(map(len, pool)) // len(pool)))
    parts = []
    for number, first in enumerate(range(0, samples, per)):
        last = min(first + per, samples)
        parts.append(_write(place / f"train-{number:06d}.tar", _samples(seed, first, last, classes, pool)))
        progress(last, samples)
    return index.save([place], "shards", parts)


def write_index(place: Path, samples: int, shards: int | None = None) -> Index:
    """An index of a set that is not there, for what needs no data: orders, plans, resuming. Samples cannot be read."""
    place.mkdir(parents=True, exist_ok=True)
    count = shards or -(-samples // PER_SHARD)
    numbers = np.arange(count, dtype=np.int64)
    counts = samples // count + (numbers < samples % count)
    digests = np.frombuffer(hashlib.shake_256(b"%d" % samples).digest(32 * count), np.uint8).reshape(count, 32)
    nothing = np.zeros_like(counts)
    columns = {"nsamples": counts, "size": counts * 100_000, "mtime": nothing, "idx": nothing, "bytes": nothing}
    entries = Entries(Names.of(f"train-{number:07d}.tar" for number in range(count)), digests, columns)
    return index.write([place], Index("shards", entries, np.empty(0, np.uint8), ""), b"")


def _write(path: Path, samples: Iterator[Sample]) -> tuple[Entry, bytes]:
    with open(path, "wb") as file:
        tar = Tar(file)
        for key, members in samples:
            tar.sample(key, members)
        tar.close()
    status = path.stat()
    part = index.shard_part(np.array(tar.offsets, np.int64), np.array(tar.crcs, np.uint32))
    return Entry(path.name, len(tar.crcs), status.st_size, tar.digest.hexdigest(), status.st_mtime_ns, 0, 0), part


def _samples(seed: int, first: int, last: int, classes: int, pool: list[bytes]) -> Iterator[Sample]:
    for number in range(first, last):
        key = draws.key(seed, PURPOSE, 1, number)
        label = str(draws.integers(key, classes)).encode()
        yield f"{number:010d}", [("jpg", pool[draws.integers(draws.extend_key(key, 1), len(pool))]), ("cls", label)]


def _picture(seed: int, number: int, width: int, height: int) -> bytes:
    """A JPEG: a coarse grid of colours made smooth, and noise that takes the bytes a photograph's details take."""
    from PIL import Image

    key = draws.mix(seed, PURPOSE, 0, number)
    coarse = np.asarray(draws.integers(draws.extend(key, np.arange(8 * 6 * 3)), 256), np.uint8).reshape(6, 8, 3)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noise = np.asarray(draws.uniform(draws.extend(key, 1000 + np.arange(width * height))), np.float32)
    pixels = np.clip(smooth + 40 * (noise.reshape(height, width, 1) - 0.5), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
