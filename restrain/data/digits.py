"""The handwritten digits of scikit-learn (1,797 images of 8 x 8): a data set without a download.

They go through the same order, augmentation and loader as any other set, as one shard of arrays.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from restrain import draws
from restrain.data.checksum import crc32
from restrain.data.reader import Sample, check_label
from restrain.draws import Purpose

HELD_OUT = 36  # images of each class that are held out for evaluation: 360
TRAINED_ON = 1797 - 10 * HELD_OUT


class DigitsSource:
    """One shard of uint8 [n, 8, 8, 1] images; grey levels 0-16 of the set are spread over 0-255."""

    channels = 1

    def __init__(self, split: str, classes: int | None = None):
        """split: ``train`` (1,437 images) or ``eval`` (360, the same whatever the seed). classes: of the model."""
        from sklearn.datasets import load_digits  # 0.3 s

        data: Any = load_digits()
        images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
        labels = data.target.astype(np.int64)
        chosen = held_out(labels) == (split == "eval")
        self._images, self._labels = np.ascontiguousarray(images[chosen]), labels[chosen]
        check_label(int(self._labels.max()), classes, "the digits set")
        self.names = [f"digits-{split}"]
        self.counts = np.array([len(self._labels)], np.int64)
        self.classes: list[str] | None = [str(c) for c in range(10)]
        self._crcs = np.array([crc32(image) for image in self._images], np.uint32)
        content = hashlib.sha256(self._images.tobytes() + self._labels.astype("<i8").tobytes())
        self.fingerprint = content.hexdigest()

    def crcs(self, shard: int) -> np.ndarray:
        return self._crcs

    def read(self, shard: int, j: int) -> Sample:
        image = self._images[j]
        return Sample(f"digit-{j}", image, int(self._labels[j]), crc32(image))

    def rows(self, shard: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # The CRC is of the bytes handed over, not the one remembered: that is what the ledger is for.
        images = self._images[j]
        return images, self._labels[j], np.array([crc32(image) for image in images], np.uint64)

    def close(self) -> None:
        pass


def held_out(labels: np.ndarray) -> np.ndarray:
    """bool [n]: of each class the 36 samples whose mix(0, HELD_OUT, sample) is smallest."""
    keys = draws.mix(0, Purpose.HELD_OUT, np.arange(len(labels)))
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(keys[members], kind="stable")[:HELD_OUT]]] = True
    return chosen
