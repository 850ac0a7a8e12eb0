"""CIFAR-10 and CIFAR-100 from ``cifar-10-python.tar.gz`` or the folder in it (Krizhevsky 2009), stored as PNG."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from restrain.data.packing import pickles
from restrain.data.packing.items import Item, Listing, Part, Spool, label_part
from restrain.errors import UserError, WorldError

TEN = {**{f"data_batch_{n}": "train" for n in range(1, 6)}, "test_batch": "test"}
HUNDRED = {"train": "train", "test": "test"}
NAMES = {"batches.meta": "label_names", "meta": "fine_label_names"}
KINDS = {"batches.meta": (TEN, "labels"), "meta": (HUNDRED, "fine_labels")}
MOST = 1 << 28  # bytes of a pickle; the largest is 155 MB
PIXELS = 3 * 32 * 32


def list_cifar(source: Path, spool: Spool) -> Listing:
    """The images become PNG (lossless) in the spool. Splits are train and test, as the recipes read them."""
    found = dict(_pickles(source))
    meta = next((name for name in NAMES if name in found), None)
    if meta is None:
        raise UserError(f"{source} holds neither batches.meta (CIFAR-10) nor meta (CIFAR-100) of the python version.")
    batches, labels_key = KINDS[meta]
    if missing := [name for name in batches if name not in found]:
        raise WorldError(f"{source} lacks {', '.join(missing)}. Fetch it again.")
    classes = [_text(name) for name in _get(pickles.read(found[meta], f"{source}: {meta}"), NAMES[meta], list)]
    labels = [label_part(number) for number in range(len(classes))]
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    for name, split in batches.items():
        title = f"{source}: {name}"
        images, numbers = _batch(pickles.read(found.pop(name), title), labels_key, len(classes), title)
        for row, (image, number) in enumerate(zip(images, numbers, strict=True)):
            span = spool.add(_png(image))
            splits[split].append(Item(f"{name}-{row:05d}", (Part("png", span, True), labels[number])))
    spool.flush()
    return Listing(splits, classes)


def is_cifar(source: Path) -> bool:
    """By name: the archive, or the folder that was in it."""
    if source.is_dir():
        return (source / "batches.meta").is_file() or all((source / n).is_file() for n in ("meta", "train", "test"))
    return source.name.startswith("cifar-10") and ".tar" in source.name


def _pickles(source: Path) -> Iterator[tuple[str, bytes]]:
    wanted = {*TEN, *HUNDRED, *NAMES}
    if source.is_dir():
        for name in sorted(wanted):
            if (source / name).is_file() and (source / name).stat().st_size <= MOST:
                yield name, (source / name).read_bytes()
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if member.isreg() and name in wanted and member.size <= MOST:
                    yield name, archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise WorldError(f"{source} is no readable .tar.gz ({error}). Fetch it again.") from error


def _batch(found: dict, labels_key: str, classes: int, title: str) -> tuple[np.ndarray, list[int]]:
    """(uint8 [n, 32, 32, 3], labels): the file keeps an image as its red, green and blue planes."""
    data, numbers = _get(found, "data", np.ndarray), _get(found, labels_key, list)
    if data.dtype != np.uint8 or data.shape != (len(numbers), PIXELS):
        raise WorldError(
            f"{title} has data of {data.dtype} {list(data.shape)} for {len(numbers)} labels. Fetch it again."
        )
    if not all(type(number) is int and 0 <= number < classes for number in numbers):
        raise WorldError(f"{title} has labels outside 0 to {classes - 1}. Fetch it again.")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), numbers


def _get(found: dict, key: str, kind: type) -> Any:
    value = found.get(key, found.get(key.encode()))
    if not isinstance(value, kind):
        raise WorldError(f"A pickle of CIFAR has no {kind.__name__} named {key!r}. Fetch the archive again.")
    return value


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "PNG", compress_level=6)
    return out.getvalue()
