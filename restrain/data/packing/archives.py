"""Tar archives as sources: WebDataset shards, and ImageNet as it is given out. Nothing is unpacked to disk."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from restrain.data import tars
from restrain.data.indexing import match_shards
from restrain.data.packing.items import Item, Listing, check_unique, key_of, split_name
from restrain.errors import UserError, WorldError

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
CLASSES = 1000


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, path: Path, offset: int, size: int):
        self._file = open(path, "rb")  # noqa: SIM115  # closed by close()
        self._first, self._size, self._at = offset, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        self._at = at + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[override]
        data = os.pread(self._file.fileno(), min(len(buffer), max(0, self._size - self._at)), self._first + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_imagenet(root: Path) -> bool:
    return (root / TRAIN).is_file() or (root / VAL).is_file()


def list_imagenet(root: Path) -> list[Listing]:
    """The archives of ILSVRC 2012 in a folder, whichever of them is there. Classes are the WordNet IDs in byte order,
    as torchvision and timm number them; the devkit says which ID a validation image has.

    Raises UserError for a missing devkit, WorldError for an archive that is damaged.
    """
    found, ids = [], None
    if (root / TRAIN).is_file():
        folders = [
            (name.removesuffix(".tar"), at, size) for name, at, size in members(root / TRAIN) if name.endswith(".tar")
        ]
        ids = sorted(name for name, _, _ in folders)
        number = {name: i for i, name in enumerate(ids)}
        items = [
            Item(key_of(name), number[wnid], str(root / TRAIN), first, size)
            for wnid, at, length in folders
            for name, first, size in members(root / TRAIN, at, length)
        ]
        check_unique(items, str(root / TRAIN))
        found.append(Listing("train", items, ids))
    if (root / VAL).is_file():
        found.append(_validation(root, ids))
    return found


def _validation(root: Path, ids: list[str] | None) -> Listing:
    wnids, truth = _devkit(root / DEVKIT)
    classes = sorted(wnids.values())
    if ids is not None and ids != classes:
        odd = sorted(set(ids) ^ set(classes))
        raise UserError(
            f"{root / TRAIN} and {root / DEVKIT} have different classes ({', '.join(odd[:3])}, {len(odd)} in all): "
            f"they are of different releases, or one of them is not whole."
        )
    number = {name: i for i, name in enumerate(classes)}
    images = sorted(members(root / VAL))
    if len(images) != len(truth):
        raise WorldError(f"{root / VAL} has {len(images)} images, and {root / DEVKIT} labels {len(truth)}. Restore it.")
    items = []
    for name, at, size in images:
        place = re.fullmatch(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG", name)
        if place is None or not 1 <= int(place[1]) <= len(truth):
            raise WorldError(f"{root / VAL} has a member {name}, which is no validation image. Restore it.")
        items.append(Item(key_of(name), number[wnids[truth[int(place[1]) - 1]]], str(root / VAL), at, size))
    return Listing("val", items, classes)


def _devkit(path: Path) -> tuple[dict[int, str], list[int]]:
    """(ILSVRC number -> WordNet ID of the classes that images have, numbers of the validation images in order)."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise UserError(f"{path} is missing: it says which class a validation image has. Put it beside the archives.")
    try:
        with tarfile.open(path, "r:gz") as archive:
            files = {name: info for info in archive for name in (TRUTH, META) if info.name.endswith(name)}
            truth, meta = (archive.extractfile(files[name]).read() for name in (TRUTH, META))  # type: ignore[union-attr]
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if int(one["num_children"]) == 0}
        numbers = [int(line) for line in truth.split()]
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError, TypeError, MatReadError) as error:
        raise WorldError(f"{path} is not ImageNet's devkit, or damaged ({type(error).__name__}: {error}).") from None
    if unknown := sorted(set(numbers) - set(wnids)):
        raise WorldError(f"{path}: its validation labels name class {unknown[0]}, which its meta.mat has not.")
    return wnids, numbers


def members(path: Path, offset: int = 0, size: int | None = None) -> Iterator[tuple[str, int, int]]:
    """(name, first byte in the file, bytes) of each regular member of an archive, or of one inside another."""
    length = path.stat().st_size if size is None else size
    try:
        with _Window(path, offset, length) as window, tarfile.open(fileobj=window, mode="r:") as archive:  # type: ignore[arg-type]
            end = 0
            for info in archive:
                end = info.offset_data + -(-info.size // tars.BLOCK) * tars.BLOCK
                if info.offset_data + info.size > length:
                    raise WorldError(f"{path} ends inside its member {info.name}: it was cut short. Fetch it again.")
                if info.isreg() and not info.issparse():
                    yield info.name, offset + info.offset_data, info.size
            window.seek(end)
            if window.read(len(tars.END)) != tars.END:
                raise WorldError(f"{path} has no end-of-archive mark: it was cut short. Fetch it again.")
    except tarfile.TarError as error:
        raise WorldError(f"{path} is no readable tar archive ({error}). Fetch it again.") from None


def is_shards(root: Path) -> bool:
    return bool(match_shards(root, "*.tar")) if root.is_dir() else root.suffix == ".tar"


def list_shards(root: Path, split: str) -> list[Listing]:
    """Tar shards, each a split by the name before its number (``train-000000.tar``): their samples, as they are."""
    folder, names = (root, match_shards(root, "*.tar")) if root.is_dir() else (root.parent, [root.name])
    named: dict[str, list[str]] = {}
    for name in names:
        stem = re.match(r"(.*?)[-_.]?\d*\.tar$", os.path.basename(name))
        named.setdefault(split_name(stem[1]) if stem and stem[1] else split, []).append(name)
    return [Listing(one, list(_samples(folder, some)), None) for one, some in named.items()]


def _samples(folder: Path, names: Sequence[str]) -> Iterator[Item]:
    seen: dict[str, str] = {}
    for name in names:
        path = folder / name
        found = tars.scan(str(path))  # every sample is whole, or this says so
        with open(path, "rb") as file:
            for first, last in pairwise(found.offsets.tolist()):
                key, _ = tars.parse(os.pread(file.fileno(), last - first, first))
                if key in seen:
                    raise UserError(f"{folder}: sample {key!r} is in {seen[key]} and in {name}. Rename one of them.")
                seen[key] = name
                yield Item(key, 0, str(path), first, last - first, whole=True)
