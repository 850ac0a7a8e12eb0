"""Photographs of a set as files and as shards, for loaders that read the one or the other, and the crop that each of
them is to take of each."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from restrain import draws
from restrain.data import images, sets
from restrain.data.augment import Pipeline
from restrain.data.augment.geometry import RandomResizedCrop
from restrain.data.loader import TrainLoader
from restrain.data.order import Order, Plan, resolve_shuffle
from restrain.data.reader import BadSample, Source
from restrain.draws import Purpose
from restrain.errors import UserError

SHARD = 1000  # samples
SEED = 0


@dataclass(frozen=True)
class Photographs:
    """``files/class/number_copy.jpg`` and ``shards/*.tar`` below ``folder``, the same ``images`` in both.

    keys: name without extension -> what Restrain's loader draws this image's crop from in its second epoch (the first
    warms it up).
    """

    folder: Path
    keys: dict[str, int]

    @property
    def images(self) -> int:
        return len(self.keys)

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def shards(self) -> list[str]:
        return sorted(str(path) for path in (self.folder / "shards").glob("*.tar"))

    def source(self) -> Source:
        """The shards behind an index, as a run opens them."""
        root = str(self.folder / "shards")
        section: Any = SimpleNamespace(name="webdataset", root=root, train="*.tar", eval=None, cache=None)
        found = sets.open_source(section, "train")
        assert found is not None
        return found


class KeyedCrop:
    """``get_params`` of torchvision's and timm's random resized crops with the box that Restrain draws for an image."""

    def __init__(self, photographs: Photographs, size: int):
        self.name, self._keys, self._crop = "", photographs.keys, RandomResizedCrop(size)

    def __call__(self, image: Any, scale: Any, ratio: Any) -> tuple[int, int, int, int]:
        """(top, left, height, width) in a PIL image, for the image called ``name``."""
        width, height = image.size
        return self.box(height, width)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The same in an image of that size."""
        top, left, h, w = self._crop.params(draws.extend_key(self._keys[self.name], 0), height, width)[:4]
        return top, left, h, w


def unpack(source: Source, folder: Path, copies: int = 1, most: int = 1000) -> Photographs:
    """Write the first ``most`` JPEGs of a set below ``folder``, each in some copies, so that an epoch is long enough to
    be timed. Raises UserError where the set holds no JPEGs."""
    found = 0
    for shard, count in enumerate(source.counts):
        for j in range(int(count)):
            if found == most:
                break
            try:
                sample = source.read(shard, j)
            except BadSample:
                continue
            if not isinstance(sample.data, np.ndarray) and sample.data[:3] == images.JPEG:
                _write(folder / "files" / f"{sample.label:05d}", found, sample.data, copies)
                found += 1
    if not found:
        raise UserError("The set holds no JPEGs, so there is nothing to decode side by side.")
    return Photographs(folder, dict(zip(_pack(folder), _keys(folder), strict=True)))


def ours(source: Source, pipeline: Pipeline, batch: int, threads: int, epochs: int = 1) -> TrainLoader:
    """Some epochs of Restrain's loader as a run has it: exact order, CRC of each sample, keyed crops."""
    order, plan = _order(source, batch)
    steps = epochs * plan.steps_per_epoch
    return TrainLoader(
        source, order, plan, pipeline, seed=SEED, rank=0, world=1, micro=batch, start=0, stop=steps, threads=threads
    )


def _order(source: Source, batch: int) -> tuple[Order, Plan]:
    samples = int(source.counts.sum())
    order = Order(source.counts, SEED, *resolve_shuffle(samples))
    return order, Plan(samples, batch, batch, order.lanes)


def _keys(folder: Path) -> list[int]:
    """The second epoch's key of each sample of the shards."""
    source = Photographs(folder, {}).source()
    order, _ = _order(source, 1)
    positions = np.arange(order.samples, dtype=np.int64)
    shard, j = order(1, positions)
    starts = np.concatenate(([0], np.cumsum(source.counts)))
    keys = np.empty(order.samples, np.uint64)
    drawn = draws.extend(draws.key(SEED, Purpose.AUGMENT, 1), positions, np.zeros_like(positions))
    keys[starts[shard] + j] = drawn
    source.close()
    return keys.tolist()


def _write(place: Path, number: int, data: images.Encoded, copies: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    first = place / f"{number:06d}_0.jpg"
    first.write_bytes(data)
    for copy in range(1, copies):
        (place / f"{number:06d}_{copy}.jpg").hardlink_to(first)


def _pack(folder: Path) -> list[str]:
    """The files as shards, copies apart from one another; their names in the order of the shards."""
    (folder / "shards").mkdir()
    files = sorted((folder / "files").glob("*/*.jpg"), key=lambda path: path.stem.split("_")[::-1])
    for first in range(0, len(files), SHARD):
        with tarfile.open(folder / "shards" / f"{first // SHARD:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for path in files[first : first + SHARD]:
                for name, data in ((path.name, path.read_bytes()), (f"{path.stem}.cls", path.parent.name.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return [path.stem for path in files]
