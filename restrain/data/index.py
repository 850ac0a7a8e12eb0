"""The side index of a data set: where each sample is, and what its bytes hash to.

``restrain-index.json`` is the manifest, ``restrain-index.bin`` the table: of a tar shard u32 offset in 512-byte blocks
[n + 1] and u32 CRC-32 [n], 8 bytes a sample; of a class folder i64 mtime [n], u32 size [n], u32 CRC-32 [n], u32 end of
name [n], names. They stand beside the data, or in a cache where that folder cannot be written. Only a count and a size
kept outside a tar can tell that it was cut between two members. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restrain.data.order import ORDER_VERSION
from restrain.errors import WorldError

VERSION = 1
MANIFEST, TABLE = "restrain-index.json", "restrain-index.bin"
CHECKED_TABLE = 1 << 28  # a table up to this size has its CRC checked when it is loaded


@dataclass(frozen=True)
class Entry:
    """One shard, or one class of a folder set. idx: where its part of the table begins, bytes: how long it is."""

    url: str  # relative to the set's folder
    nsamples: int
    size: int  # bytes of the shard, or of all files of the class
    sha256: str  # of the content
    mtime: int  # nanoseconds; 0 for a class, whose files have their own
    idx: int
    bytes: int


class Index:
    """The shards of a set and what the table knows of them. kind: ``shards`` or ``folder``."""

    def __init__(self, kind: str, entries: Sequence[Entry], table: np.ndarray, place: str):
        """table: uint8, the whole table (mapped, not read). place: the folder that holds the index."""
        self.kind, self.entries, self.place = kind, list(entries), place
        self._table = table
        self.names = [entry.url for entry in self.entries]
        self.counts = np.array([entry.nsamples for entry in self.entries], np.int64)
        self.classes = self.names if kind == "folder" else None

    @property
    def fingerprint(self) -> str:
        """sha256 over name, count and content of each shard, in order: the same wherever the set is moved to."""
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(json.dumps([os.path.basename(entry.url), entry.nsamples, entry.sha256, []]).encode())
        return digest.hexdigest()

    def part(self, shard: int) -> np.ndarray:
        """The shard's bytes of the table."""
        entry = self.entries[shard]
        return self._table[entry.idx : entry.idx + entry.bytes]

    def offsets(self, shard: int) -> np.ndarray:
        """Tar shards: u32 [n + 1], in 512-byte blocks; sample j is the range from offset j to j + 1."""
        return self.part(shard)[: 4 * (self.entries[shard].nsamples + 1)].view("<u4")

    def crcs(self, shard: int) -> np.ndarray:
        """CRC-32 of each sample's stored bytes, u32 [n]."""
        n = self.entries[shard].nsamples
        at = 4 * (n + 1) if self.kind == "shards" else 12 * n
        return self.part(shard)[at : at + 4 * n].view("<u4")

    def mtimes(self, shard: int) -> np.ndarray:
        """Class folders: nanoseconds, i64 [n]."""
        return self.part(shard)[: 8 * self.entries[shard].nsamples].view("<i8")

    def sizes(self, shard: int) -> np.ndarray:
        """Class folders: bytes of each file, u32 [n]."""
        n = self.entries[shard].nsamples
        return self.part(shard)[8 * n : 12 * n].view("<u4")

    def file(self, shard: int, j: int) -> str:
        """Class folders: path of a file, relative to the class folder."""
        n = self.entries[shard].nsamples
        ends = self.part(shard)[16 * n : 20 * n].view("<u4")
        first = int(ends[j - 1]) if j else 0
        return os.fsdecode(self.part(shard)[20 * n + first : 20 * n + int(ends[j])].tobytes())

    def select(self, names: Iterable[str]) -> Index:
        """The same index with these shards only, in this order."""
        by_name = {entry.url: entry for entry in self.entries}
        return Index(self.kind, [by_name[name] for name in names], self._table, self.place)


def shard_part(offsets: np.ndarray, crcs: np.ndarray) -> bytes:
    """A tar shard's bytes of the table. offsets: int64 [n + 1], bytes."""
    return (offsets // 512).astype("<u4").tobytes() + crcs.astype("<u4").tobytes()


def class_part(files: Sequence[str], sizes: Sequence[int], mtimes: Sequence[int], crcs: Sequence[int]) -> bytes:
    """A class folder's bytes of the table."""
    names = [os.fsencode(file) for file in files]
    columns = [np.array(mtimes, "<i8"), np.array(sizes, "<u4"), np.array(crcs, "<u4")]
    columns.append(np.cumsum([len(name) for name in names]).astype("<u4"))
    return b"".join([*(column.tobytes() for column in columns), *names])


def load(place: str | Path) -> Index | None:
    """The index in a folder; None where there is none that this version can use."""
    place = Path(place)
    try:
        manifest = json.loads((place / MANIFEST).read_text())
        if manifest["version"] != VERSION or manifest["key_rule"] != "wds" or manifest["excluded"]:
            return None
        entries = [Entry(**entry) for entry in manifest["shardlist"]]
        table: Any = np.memmap(place / TABLE, np.uint8, "r") if manifest["table_bytes"] else np.empty(0, np.uint8)
        if len(table) != manifest["table_bytes"]:
            return None
        if len(table) <= CHECKED_TABLE and zlib.crc32(table) != manifest["table_crc"]:
            return None
        return Index(manifest["kind"], entries, table, str(place))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or half written by a process that was killed: it is made again


def save(places: Sequence[str | Path], kind: str, parts: Sequence[tuple[Entry, bytes]]) -> Index:
    """Write an index into the first of the folders that can be written; idx and bytes of the entries are set here.

    Raises WorldError where none can.
    """
    entries, at = [], 0
    for entry, part in parts:
        entries.append(Entry(**{**asdict(entry), "idx": at, "bytes": len(part)}))
        at += -(-len(part) // 8) * 8
    table = b"".join(part + bytes(-len(part) % 8) for _, part in parts)
    manifest = {
        "version": VERSION,
        "order_version": ORDER_VERSION,
        "kind": kind,
        "key_rule": "wds",
        "nsamples": sum(entry.nsamples for entry in entries),
        "fingerprint": Index(kind, entries, np.empty(0, np.uint8), "").fingerprint,
        "excluded": [],
        "table_bytes": len(table),
        "table_crc": zlib.crc32(table),
        "shardlist": [asdict(entry) for entry in entries],
    }
    reasons = []
    for place in map(Path, places):
        try:
            place.mkdir(parents=True, exist_ok=True)
            if not place.stat().st_mode & 0o222:  # meant to stay as it is, though root could write it
                raise PermissionError(13, "read-only folder")
            replace(place / TABLE, table)
            replace(place / MANIFEST, json.dumps(manifest, indent=1).encode())  # last: it vouches for the table
            return Index(kind, entries, np.frombuffer(table, np.uint8), str(place))
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
