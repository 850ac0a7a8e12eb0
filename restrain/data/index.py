"""The side index of a data set: where each sample is, and what its bytes hash to.

``restrain-index.json`` is the manifest (`manifest.py`), ``restrain-index.bin`` the table: of a tar shard u32 offset in
512-byte blocks [n + 1] and u32 CRC-32 [n], 8 bytes a sample; of a class folder i64 mtime [n], u32 size [n], u32 CRC-32
[n], u32 end of name [n], names. They stand beside the data, or in a cache where that folder cannot be written. Only a
count and a size kept outside a tar can tell that it was cut between two members. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace as changed
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from restrain.data import manifest
from restrain.data.checksum import crc32
from restrain.data.manifest import Entries, Entry
from restrain.data.order import ORDER_VERSION
from restrain.errors import WorldError

VERSION = 1
BLOCK = 512  # offsets of the table are in blocks of tar
TABLE = "restrain-index.bin"
CHECKED_TABLE = 1 << 28  # a table up to this size has its CRC checked when it is loaded
Excluded = tuple[str, int, str]
"""A sample that is left out: name of its shard, which of the shard's stored samples, why."""


class Index:
    """The shards of a set and what the table knows of them. kind: ``shards`` or ``folder``.

    Samples are numbered without those that are excluded: sample j of a shard is the j-th that is not. What stands in
    the table (`part`) is what is stored.
    """

    def __init__(
        self,
        kind: str,
        entries: Sequence[Entry],
        table: np.ndarray,
        place: str,
        excluded: Sequence[Excluded] = (),
    ):
        """table: uint8, the whole table (mapped, not read). place: the folder that holds the index."""
        self.kind, self.place, self.table = kind, place, table
        self.entries = entries if isinstance(entries, Entries) else Entries.of(entries)
        self.names: Sequence[str] = self.entries.urls
        self.classes = list(self.names) if kind == "folder" else None
        self.excluded = list(excluded)
        gone: dict[str, list[int]] = {}
        for name, j, _ in excluded:
            gone.setdefault(name, []).append(j)
        self._gone = {i: np.unique(gone[name]) for i, name in enumerate(self.names) if name in gone} if gone else {}
        self.counts = self.entries.numbers["nsamples"].copy()
        for shard, js in self._gone.items():
            self.counts[shard] -= len(js)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over name, count and content of each shard, in order: the same wherever the set is moved to."""
        digest = hashlib.sha256()
        for i, entry in enumerate(self.entries):
            gone = self._gone[i].tolist() if i in self._gone else []
            digest.update(json.dumps([os.path.basename(entry.url), entry.nsamples, entry.sha256, gone]).encode())
        return digest.hexdigest()

    def part(self, shard: int) -> np.ndarray:
        """The shard's bytes of the table."""
        numbers = self.entries.numbers
        first = int(numbers["idx"][shard])
        return self.table[first : first + int(numbers["bytes"][shard])]

    def gone(self, shard: int) -> set[int]:
        """The stored samples of a shard that are excluded."""
        return set(self._gone[shard].tolist()) if shard in self._gone else set()

    def stored_spans(self, shard: int) -> Iterator[tuple[int, int, int]]:
        """Tar shards: (number, first byte, first byte after it) of each stored sample."""
        n = int(self.entries.numbers["nsamples"][shard])
        borders = (self.part(shard)[: 4 * (n + 1)].view("<u4").astype(np.int64) * BLOCK).tolist()
        return ((j, first, last) for j, (first, last) in enumerate(pairwise(borders)))

    def stored(self, shard: int, j: int) -> int:
        """Which of the shard's stored samples is sample j."""
        if shard not in self._gone:
            return j
        gone = self._gone[shard]
        return j + int(np.searchsorted(gone - np.arange(len(gone)), j, side="right"))

    def span(self, shard: int, j: int) -> tuple[int, int]:
        """Tar shards: first byte of sample j, and the first after it."""
        j, part = self.stored(shard, j), self.part(shard)
        first, last = part[4 * j : 4 * j + 8].view("<u4").tolist()
        return first * BLOCK, last * BLOCK

    def crc(self, shard: int, j: int) -> int:
        """CRC-32 of the stored bytes of sample j."""
        return self.stored_crc(shard, self.stored(shard, j))

    def stored_crc(self, shard: int, j: int) -> int:
        return int(self._stored_crcs(shard)[j])

    def crcs(self, shard: int) -> np.ndarray:
        """CRC-32 of each sample's stored bytes, u32 [n]."""
        found = self._stored_crcs(shard)
        return np.delete(found, self._gone[shard]) if shard in self._gone else found

    def _stored_crcs(self, shard: int) -> np.ndarray:
        n = int(self.entries.numbers["nsamples"][shard])
        at = 4 * (n + 1) if self.kind == "shards" else 12 * n
        return self.part(shard)[at : at + 4 * n].view("<u4")

    def file(self, shard: int, j: int) -> str:
        """Class folders: path of sample j, relative to the class folder."""
        return class_file(self.part(shard), int(self.entries.numbers["nsamples"][shard]), self.stored(shard, j))

    def select(self, names: Iterable[str]) -> Index:
        """The same index with these shards only, in this order."""
        names = list(names)
        if self.names == names:
            return self
        at = {name: i for i, name in enumerate(self.names)}
        rows = np.array([at[name] for name in names], np.int64)
        wanted = set(names)
        excluded = [one for one in self.excluded if one[0] in wanted]
        return Index(self.kind, self.entries.take(rows), self.table, self.place, excluded)


def shard_part(offsets: np.ndarray, crcs: np.ndarray) -> bytes:
    """A tar shard's bytes of the table. offsets: int64 [n + 1], bytes."""
    return (offsets // 512).astype("<u4").tobytes() + crcs.astype("<u4").tobytes()


def class_part(files: Sequence[str], sizes: Sequence[int], mtimes: Sequence[int], crcs: Sequence[int]) -> bytes:
    """A class folder's bytes of the table."""
    names = [os.fsencode(file) for file in files]
    columns = [np.array(mtimes, "<i8"), np.array(sizes, "<u4"), np.array(crcs, "<u4")]
    columns.append(np.cumsum([len(name) for name in names]).astype("<u4"))
    return b"".join([*(column.tobytes() for column in columns), *names])


def class_file(part: np.ndarray, n: int, j: int) -> str:
    """Stored file j of the n in a class folder's part of the table."""
    ends = part[16 * n : 20 * n].view("<u4")
    first = int(ends[j - 1]) if j else 0
    return os.fsdecode(part[20 * n + first : 20 * n + int(ends[j])].tobytes())


def class_rows(part: np.ndarray, n: int) -> list[tuple[int, int, int]]:
    """(bytes, time of change in ns, CRC-32) of each stored file of a class folder."""
    sizes, crcs = part[8 * n : 12 * n].view("<u4"), part[12 * n : 16 * n].view("<u4")
    return list(zip(sizes.tolist(), part[: 8 * n].view("<i8").tolist(), crcs.tolist(), strict=True))


def load(place: str | Path, table: Any = None) -> Index | None:
    """The index in a folder; None where there is none that this version can use. table: in place of the folder's own,
    anything of the right length whose slices are arrays."""
    place = Path(place)
    try:
        header, entries = manifest.read(place)
        if header["version"] != VERSION or header["key_rule"] != "wds":
            return None
        size = header["table_bytes"]
        if table is None:
            table = np.memmap(place / TABLE, np.uint8, "r") if size else np.empty(0, np.uint8)
            if size <= CHECKED_TABLE and crc32(table) != header["table_crc"]:
                return None
        excluded = [(str(n), j, str(why)) for n, j, why in header["excluded"]]
        if len(table) != size or not _sound(header["kind"], entries, size, excluded):
            return None
        return Index(header["kind"], entries, table, str(place), excluded)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None  # absent, or half written by a process that was killed: it is made again


def _sound(kind: str, entries: Entries, size: int, excluded: Sequence[Excluded]) -> bool:
    """Whether the numbers of a manifest can be: somebody may have written into it."""
    numbers = entries.numbers
    n, first, length = numbers["nsamples"], numbers["idx"], numbers["bytes"]
    fits = kind in ("shards", "folder") and len(entries.sha256) == len(entries) and (n >= 0).all()
    if size and kind == "shards":
        fits = fits and (length == 8 * n + 4).all()
    if not fits or (first < 0).any() or (length < 0).any() or (first + length > size).any():
        return False
    if any("\0" in name for name in entries.urls):
        return False
    count = dict(zip(entries.urls, n.tolist(), strict=True)) if excluded else {}
    return all(type(j) is int and 0 <= j < count.get(name, j + 1) for name, j, _ in excluded)


def save(
    places: Sequence[str | Path],
    kind: str,
    parts: Sequence[tuple[Entry, bytes]],
    excluded: Sequence[Excluded] = (),
) -> Index:
    """Write an index into the first of the folders that can be written; idx and bytes of the entries are set here.

    Raises WorldError where none can.
    """
    entries, at = [], 0
    for entry, part in parts:
        entries.append(changed(entry, idx=at, bytes=len(part)))
        at += -(-len(part) // 8) * 8
    table = b"".join(part + bytes(-len(part) % 8) for _, part in parts)
    made = Index(kind, entries, np.frombuffer(table, np.uint8), "", excluded)
    return write(places, made, table)


def write(places: Sequence[str | Path], made: Index, table: bytes) -> Index:
    """Write an index that is in memory, as `save` does."""
    header = {
        "version": VERSION,
        "order_version": ORDER_VERSION,
        "kind": made.kind,
        "key_rule": "wds",
        "nsamples": int(made.counts.sum()),
        "fingerprint": made.fingerprint,
        "excluded": [list(one) for one in made.excluded],
        "table_bytes": len(table),
        "table_crc": crc32(table),
    }
    name, text = manifest.encode(header, made.entries)
    reasons = []
    for place in map(Path, places):
        try:
            place.mkdir(parents=True, exist_ok=True)
            if not place.stat().st_mode & 0o222:  # meant to stay as it is, though root could write it
                raise PermissionError(13, "read-only folder")
            replace(place / TABLE, table)
            replace(place / name, text)  # last: it vouches for the table
            for other in {manifest.MANIFEST, manifest.LINES} - {name}:
                (place / other).unlink(missing_ok=True)
            made.place = str(place)
            return made
        except OSError as error:
            reasons.append(f"{place}: {error.strerror or error}")
    raise WorldError(
        f"The index of the data set can be written neither beside the data nor into the cache ({'; '.join(reasons)}). "
        f"Make one of them writable, or name a folder that is with data.cache=FOLDER."
    )


def places(root: str | Path, cache: str | None = None) -> list[Path]:
    """Where the index of the set in ``root`` may be: beside the data; then in the cache, by the hash of its path."""
    base = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restrain/index"
    return [Path(root), base / hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]]


def replace(path: Path, data: bytes) -> None:
    """Write a file so that no reader ever sees half of it."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
