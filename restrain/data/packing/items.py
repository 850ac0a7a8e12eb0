"""What is to be packed, before it is read: a listing of images with their labels, in their sources' own order."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from restrain.errors import UserError, WorldError

SPLITS = {"valid": "val", "validation": "val", "dev": "val", "eval": "val"}  # other names of a split -> ours


@dataclass(frozen=True, slots=True)
class Item:
    """An image: bytes [offset, offset + size) of a file. whole: they are a sample of a tar instead, all its members."""

    key: str
    label: int
    path: str
    offset: int
    size: int
    whole: bool = False

    def read(self) -> bytes:
        """Raises WorldError."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, self.size, self.offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise WorldError(f"{self.path} cannot be read: {error.strerror}. Restore it, and pack again.") from error
        if len(data) != self.size:
            raise WorldError(f"{self.path} is shorter than it was when it was listed. Restore it, and pack again.")
        return data


@dataclass
class Listing:
    """A split. classes: names in the order of their numbers, where the source knows them."""

    split: str
    items: list[Item]
    classes: list[str] | None = None

    @property
    def bytes(self) -> int:
        return sum(item.size for item in self.items)

    def digest(self) -> str:
        """SHA-256 of what is listed, where it lies aside."""
        found = hashlib.sha256()
        for item in self.items:
            found.update(f"{item.key}\0{item.label}\0{item.size}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()


def key_of(path: str) -> str:
    """A sample's key from a file's relative path: without its ending, underscores for dots, which end keys."""
    folder, _, name = path.replace(os.sep, "/").rpartition("/")
    stem = os.path.splitext(name)[0].replace(".", "_") or "_"
    return f"{folder}/{stem}" if folder else stem


def check_unique(items: Sequence[Item], what: str) -> None:
    """Raises UserError where two images have one key."""
    seen: dict[str, str] = {}
    for item in items:
        if item.key in seen:
            raise UserError(
                f"{what}: {seen[item.key]} and {item.path} would both be sample {item.key!r}, since a key is a name "
                f"without its ending. Rename one of them."
            )
        seen[item.key] = item.path


def numbered(labels: Sequence[object]) -> tuple[list[int], list[str] | None]:
    """(class numbers, class names) of labels as written: whole numbers are kept, names are numbered in byte order."""
    texts = [str(label).strip() for label in labels]
    if all(re.fullmatch(r"[0-9]{1,9}", text) for text in texts):
        return [int(text) for text in texts], None
    classes = sorted(set(texts), key=os.fsencode)
    number = {name: i for i, name in enumerate(classes)}
    return [number[text] for text in texts], classes


def split_name(name: str) -> str:
    return SPLITS.get(name.lower(), name.lower())
