"""The manifest of an index: one entry a shard, held in columns, so that half a million of them are small.

``restrain-index.json`` is one JSON object with a ``shardlist``. Above `MANY_SHARDS` it is ``restrain-index.jsonl.zst``:
the same object without the list in the first line, then a shard a line, compressed; it is read line by line. No torch
here.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

MANIFEST, LINES = "restrain-index.json", "restrain-index.jsonl.zst"
MANY_SHARDS = 50_000
NUMBERS = ("nsamples", "size", "mtime", "idx", "bytes")


@dataclass(frozen=True)
class Entry:
    """One shard, or one class of a folder set. idx: where its part of the table begins, bytes: how long it is."""

    url: str  # relative to the set's folder
    nsamples: int  # stored; what is excluded counts
    size: int  # bytes of the shard, or of all files of the class
    sha256: str  # of the content
    mtime: int  # nanoseconds; 0 for a class, whose files have their own
    idx: int
    bytes: int


class Names(Sequence[str]):
    """Strings end to end in one array of bytes."""

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self._text, self._ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        text, ends = bytearray(), []
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        return cls(np.frombuffer(bytes(text), np.uint8), np.array(ends, np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]  # negative ones, and IndexError
        first = int(self._ends[at - 1]) if at else 0
        return os.fsdecode(self._text[first : int(self._ends[at])].tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def take(self, rows: np.ndarray) -> Names:
        return Names.of(self[int(row)] for row in rows)


class Entries(Sequence[Entry]):
    """The entries of a manifest in columns: about 100 bytes a shard. Entries themselves are made when asked for."""

    def __init__(self, urls: Names, sha256: np.ndarray, numbers: dict[str, np.ndarray]):
        """sha256: uint8 [n, 32]. numbers: int64 [n] of each of `NUMBERS`."""
        self.urls, self.sha256, self.numbers = urls, sha256, numbers

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        digests, columns = bytearray(), {name: [] for name in NUMBERS}

        def noted() -> Iterator[str]:
            for entry in entries:
                digests.extend(bytes.fromhex(entry.sha256))
                for name, column in columns.items():
                    column.append(getattr(entry, name))
                yield entry.url

        urls = Names.of(noted())
        numbers = {name: np.array(column, np.int64) for name, column in columns.items()}
        return cls(urls, np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32), numbers)

    def __len__(self) -> int:
        return len(self.urls)

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        numbers = {name: int(column[at]) for name, column in self.numbers.items()}
        return Entry(url=self.urls[at], sha256=self.sha256[at].tobytes().hex(), **numbers)

    def take(self, rows: np.ndarray) -> Entries:
        numbers = {name: column[rows] for name, column in self.numbers.items()}
        return Entries(self.urls.take(rows), self.sha256[rows], numbers)


def read(place: Path) -> tuple[dict[str, Any], Entries]:
    """(the manifest without its list, its entries) of a folder; the newer file where both are there.

    Raises OSError, or ValueError, KeyError or TypeError where it is no manifest.
    """
    found = [path for path in (place / MANIFEST, place / LINES) if path.exists()]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=place / MANIFEST)
    return decode(newest.read_bytes())


def decode(data: bytes) -> tuple[dict[str, Any], Entries]:
    """`read` of a file's bytes, of either form."""
    if data[:4] != b"\x28\xb5\x2f\xfd":
        manifest = json.loads(data)
        entries = Entries.of(Entry(**entry) for entry in manifest.pop("shardlist"))
        return manifest, entries
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as stream:
            lines = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape")
            manifest = json.loads(lines.readline())
            entries = Entries.of(Entry(**json.loads(line)) for line in lines)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if len(entries) != manifest.pop("shards"):
        raise ValueError("the manifest is cut short")
    return manifest, entries


def encode(manifest: dict[str, Any], entries: Sequence[Entry]) -> tuple[str, bytes]:
    """(name, bytes) of the manifest's file."""
    if len(entries) <= MANY_SHARDS:
        return MANIFEST, json.dumps({**manifest, "shardlist": [vars(e) for e in entries]}, indent=1).encode()
    import zstandard

    out = io.BytesIO()
    with zstandard.ZstdCompressor(level=3).stream_writer(out, closefd=False) as stream:
        stream.write(json.dumps({**manifest, "shards": len(entries)}).encode() + b"\n")
        for entry in entries:
            stream.write(json.dumps(vars(entry)).encode() + b"\n")
    return LINES, out.getvalue()
