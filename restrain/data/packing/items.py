"""What is packed: samples as a listing of keys, labels and places of bytes, never the bytes of all images at once."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from restrain.errors import UserError, WorldError

SPOOL = ".restrain-spool-"  # how its file is called, in the folder of the shards
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
}  # what folders and files are called -> the split, which names the shards
LONGEST = 90  # bytes of a key's last component: with an extension it fits the 100 of a ustar name
LONGEST_FOLDER = 150  # bytes of the components before, of the 155 of a ustar prefix
UNSAFE = re.compile(r"[%\\\x00-\x1f\x7f\ud800-\udfff]")


WHOLE = -1  # offset of a span that is all of its file


class Span(NamedTuple):
    """Bytes in a file. offset: WHOLE for a file of its own; size: of the listing, another one later is an error."""

    file: str
    offset: int
    size: int


class Part(NamedTuple):
    """A file of a sample. where: its place, or the bytes themselves; image: its extension follows its content."""

    extension: str
    where: Span | bytes
    image: bool = False

    @property
    def size(self) -> int:
        return len(self.where) if isinstance(self.where, bytes) else self.where.size


@dataclass(frozen=True, slots=True)
class Item:
    """A sample: a key that is its own in the split, and its files in the order of the shard."""

    key: str
    parts: tuple[Part, ...]
    origin: str = ""  # what messages call it, where the key does not say


@dataclass
class Listing:
    """All samples by split, in the order of the source; classes in the order of their numbers, if they have names."""

    splits: dict[str, list[Item]]
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)  # said before work begins

    def fingerprint(self, root: Path, spool: Spool) -> str:
        """sha256 over keys, sizes and places of all samples, the classes and what is in the spool.

        root: files are named relative to it, so a source may be moved.
        """
        digest = hashlib.sha256(repr((self.classes, spool.digest.hexdigest())).encode())
        for split, items in self.splits.items():
            digest.update(f"\0{split}\0{len(items)}".encode())
            for item in items:
                parts = [(p.extension, *_place(p.where, root)) for p in item.parts]
                digest.update(repr((item.key, parts)).encode())
        return digest.hexdigest()


def _place(where: Span | bytes, root: Path) -> tuple:
    if isinstance(where, bytes):
        return (where,)
    name = SPOOL if os.path.basename(where.file).startswith(SPOOL) else where.file.removeprefix(f"{root}{os.sep}")
    return (os.fsencode(name), where.offset, where.size)


def label_part(label: int) -> Part:
    return Part("cls", b"%d" % label)


def image_part(name: str, where: Span | bytes) -> Part:
    return Part(os.path.splitext(name)[1][1:].lower(), where, True)


def safe_key(path: str) -> str:
    """A key for the file ``path`` (with ``/``, its extension taken off): what webdataset reads back as it is.

    A dot would end the key, ``__x__`` would make webdataset skip it, ``..`` and ``/x`` would leave the folder that an
    archive is unpacked in: these and control characters are written as ``%2E`` and so on, so two paths never share a
    key. Components too long for a ustar header end in a hash.
    """
    components = [_safe(component) for component in path.split("/")]
    *folders, name = components
    name = _short(name.replace(".", "%2E"), LONGEST)
    return "/".join([*([_short("/".join(folders), LONGEST_FOLDER)] if folders else []), name])


def _safe(component: str) -> str:
    text = UNSAFE.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode(errors="surrogatepass")), component
    )
    if text in (".", "..", ""):
        return text.replace(".", "%2E") or "%"
    return f"%5F{text[1:]}" if text.startswith("__") else text


def _short(text: str, most: int) -> str:
    data = text.encode()
    if len(data) <= most:
        return text
    head = data[: most - 17].decode(errors="ignore").replace("/", "%2F")
    return f"{head}-{hashlib.sha256(data).hexdigest()[:16]}"


def check_unique(split: str, items: Iterable[Item]) -> None:
    """Raises UserError that names both samples of a key."""
    seen: dict[str, Item] = {}
    for item in items:
        first = seen.setdefault(item.key, item)
        if first is not item:
            raise UserError(
                f"{first.origin or first.key} and {item.origin or item.key} would both be sample {item.key!r} of "
                f"{split}: keys leave extensions out. Rename one of them, or move it away."
            )


def number_classes(names: Iterable[str]) -> dict[str, int]:
    """Class -> number, in byte order: as torchvision and timm number folders."""
    return {name: number for number, name in enumerate(sorted(set(names), key=os.fsencode))}


class Spool:
    """A temporary file that holds what cannot be read at random where it is: rows of Parquet, members of a .tar.gz."""

    def __init__(self, folder: Path):
        self._folder, self._file, self.size = folder, None, 0
        self.digest = hashlib.sha256()

    def add(self, data: bytes) -> Span:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.NamedTemporaryFile(dir=self._folder, prefix=SPOOL)  # noqa: SIM115
        try:
            self._file.write(data)
        except OSError as error:
            raise WorldError(f"{self._file.name} cannot be written: {error.strerror}. Free some space.") from error
        span = Span(self._file.name, self.size, len(data))
        self.size += len(data)
        self.digest.update(data)
        return span

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
