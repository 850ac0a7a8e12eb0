"""CIFAR-10 and CIFAR-100 from their archives for Python (Krizhevsky 2009), as PNG, which loses nothing."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from restrain.data.packing.items import Item, Listing
from restrain.data.packing.lists import Spool
from restrain.data.packing.pickles import read_plain
from restrain.errors import WorldError

ARCHIVES = ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz")
TRAIN = re.compile(r"(?:.*/)?(?:data_batch_[1-5]|train)$")
TEST = re.compile(r"(?:.*/)?(?:test_batch|test)$")
META = re.compile(r"(?:.*/)?(?:batches\.meta|meta)$")
SIDE = 32


def is_cifar(path: Path) -> Path | None:
    """The archive, if this is one or a folder with one."""
    if path.is_file():
        return path if path.name in ARCHIVES else None
    return next((path / name for name in ARCHIVES if (path / name).is_file()), None)


def list_cifar(path: Path, spool: Spool) -> list[Listing]:
    """The training and test images (as ``val``). Raises WorldError where the archive is damaged, or another one."""
    splits: dict[str, list[Item]] = {"train": [], "val": []}
    classes: list[str] | None = None
    try:
        with tarfile.open(path, "r:gz") as archive:
            files = {info.name: archive.extractfile(info) for info in archive.getmembers() if info.isreg()}
            for name in sorted(files):
                found = "train" if TRAIN.match(name) else "val" if TEST.match(name) else None
                if found is None and not META.match(name):
                    continue
                batch = read_plain(files[name].read(), f"{path}: {name}")  # type: ignore[union-attr]
                if found is None:
                    classes = [text.decode() for text in _field(batch, "label_names", "fine_label_names")]
                else:
                    splits[found] += _images(batch, spool)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise WorldError(f"{path} is no readable archive ({error}): it was cut short. Fetch it again.") from None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WorldError(f"{path} is not CIFAR as it is given out ({error}).") from None
    if not splits["train"] or not splits["val"] or classes is None:
        raise WorldError(f"{path} is not CIFAR as it is given out: its batches or class names are missing.")
    return [Listing(split, items, classes) for split, items in splits.items()]


def _images(batch: Any, spool: Spool) -> list[Item]:
    from PIL import Image

    pixels: np.ndarray = _field(batch, "data")
    names, labels = _field(batch, "filenames"), _field(batch, "labels", "fine_labels")
    # Each row is the red plane, then the green, then the blue.
    pictures = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    if not len(pictures) == len(names) == len(labels):
        raise ValueError("images, names and labels are not as many")
    found = []
    for picture, name, label in zip(pictures, names, labels, strict=True):
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(out, "PNG")
        found.append(spool.item(name.decode().removesuffix(".png"), int(label), out.getvalue()))
    return found


def _field(batch: Any, *names: str) -> Any:
    for name in names:
        for key in (name, name.encode()):
            if key in batch:
                return batch[key]
    raise KeyError(names[0])
