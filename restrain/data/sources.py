"""Sets of image files: tar shards and class folders, each behind its index. Every read is checked by CRC-32."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from restrain.data import tars
from restrain.data.checksum import crc32
from restrain.data.index import Index
from restrain.data.indexing import IMAGES
from restrain.data.reader import BadSample, LocalStore, Sample, Store, check_label
from restrain.errors import WorldError

EXTENSIONS = tuple(extension[1:] for extension in IMAGES)
NUMBER = re.compile(rb"\s*[-+]?[0-9]{1,18}\s*")
ROTTEN = "its bytes are not those that were indexed (checksum)"


class _Indexed:
    """What the sources of this module share: names, counts and CRCs come from the index."""

    channels = 3

    def __init__(self, index: Index, root: str | Path, classes: int | None = None):
        self.index, self.root, self._classes = index, Path(root), classes
        self.names, self.counts = index.names, index.counts
        self.classes: list[str] | None = index.classes

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    def crcs(self, shard: int):
        return self.index.crcs(shard)


class ShardSource(_Indexed):
    """Tar shards of images (``.jpg``, ``.png``, ...) with labels in ``.cls`` (a number) or ``.json`` ("label")."""

    def __init__(self, index: Index, root: str | Path, classes: int | None = None, store: Store | None = None):
        """classes: of the model, labels are checked against it. store: where the bytes are, if not below ``root``."""
        super().__init__(index, root, classes)
        self._store = store or LocalStore(self.root, self.names, index.entries.numbers["size"])
        # Of shards behind a network: what is read soon (the first of them first), and whether it fits into the cache.
        self.expect: Callable[[Sequence[int]], None] | None = getattr(self._store, "expect", None)
        self.check_room: Callable[[Sequence[int]], None] | None = getattr(self._store, "check_room", None)

    def sample(self, shard: int, j: int) -> dict[str, str | bytes]:
        """The sample as webdataset gives it: ``__key__``, ``__url__``, extension -> bytes. Raises BadSample."""
        key, fields, _ = self._checked(shard, j)
        place = {"__key__": key, "__url__": str(self.root / self.names[shard])}
        return place | {extension: bytes(content) for extension, content in fields.items()}

    def read(self, shard: int, j: int) -> Sample:
        key, fields, crc = self._checked(shard, j)
        image = next((fields[e] for e in EXTENSIONS if e in fields), None)
        if image is None:
            raise BadSample(self.names[shard], j, key, f"no image among its files ({_extensions(fields)})")
        try:
            label = label_of(fields)
        except ValueError as error:
            raise BadSample(self.names[shard], j, key, str(error)) from error
        return Sample(key, image, check_label(label, self._classes, f"sample {key} of {self.names[shard]}"), crc)

    def close(self) -> None:
        self._store.close()

    def _checked(self, shard: int, j: int) -> tuple[str, dict[str, memoryview], int]:
        """(key, extension -> content, CRC-32 of the sample)."""
        first, last = self.index.span(shard, j)
        data = self._store.read(shard, first, last - first)
        crc = crc32(data)
        if crc != self.index.crc(shard, j):
            raise BadSample(self.names[shard], j, f"at byte {first}", ROTTEN, rotten=True)
        return *tars.parse(data), crc


class FolderSource(_Indexed):
    """``class/**/image``: a class is a shard, its number is its label."""

    def read(self, shard: int, j: int) -> Sample:
        key = f"{self.names[shard]}/{self.index.file(shard, j)}"
        try:
            data = (self.root / key).read_bytes()
        except OSError as error:
            raise WorldError(f"{self.root / key} cannot be read: {error.strerror}. Restore it.") from error
        crc = crc32(data)
        if crc != self.index.crc(shard, j):
            raise BadSample(self.names[shard], j, key, ROTTEN, rotten=True)
        return Sample(key, data, check_label(shard, self._classes, f"class folder {self.names[shard]}"), crc)

    def close(self) -> None:
        pass


def label_of(fields: dict[str, memoryview]) -> int:
    """The label of a sample. Raises ValueError that says what is missing."""
    if "cls" in fields:
        text = bytes(fields["cls"])
        if not NUMBER.fullmatch(text):
            raise ValueError(f"label missing: its .cls holds {text[:20]!r}, no whole number")
        return int(text)
    if "json" in fields:
        try:
            record = json.loads(bytes(fields["json"]))
        except (ValueError, RecursionError):  # ValueError: also bytes that are not UTF-8, and absurdly long numbers
            raise ValueError("label missing: its .json is not valid JSON") from None
        for name in ("label", "cls"):
            value = record.get(name) if isinstance(record, dict) else None
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        raise ValueError('label missing: its .json has no whole number under "label" or "cls"')
    raise ValueError(f"label missing: neither .cls nor .json among its files ({_extensions(fields)})")


def _extensions(fields: dict[str, memoryview]) -> str:
    return ", ".join(f".{name}" for name in fields) or "none"
