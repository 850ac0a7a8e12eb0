"""Tar shards: where their samples are, and what a sample's bytes hold. WebDataset's rules, to the letter.

Members are found by walking the headers of plain archives; anything unusual (long names, PAX and GNU headers, large
sizes) is left to the standard library's `tarfile`, which is slower and knows everything. No torch here.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from restrain.data.checksum import crc32
from restrain.errors import WorldError

BLOCK = 512
END = bytes(2 * BLOCK)  # the end-of-archive mark
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # what webdataset splits names by
META = re.compile(r"__[^/]*__($|/)")  # what webdataset skips


class _Unusual(Exception):
    """A header that the fast walk does not understand."""


@dataclass(frozen=True)
class Member:
    """A member as found: its name, where its headers begin, where its data begin, bytes of data, a regular file?"""

    name: str
    start: int
    data: int
    size: int
    regular: bool

    @property
    def end(self) -> int:
        return self.data + -(-self.size // BLOCK) * BLOCK


@dataclass(frozen=True)
class Scan:
    """What indexing a shard found. offsets: int64 [n + 1], bytes; sample j is [offsets[j], offsets[j + 1])."""

    offsets: np.ndarray
    crcs: np.ndarray  # uint32 [n], of those ranges
    size: int
    mtime: int  # nanoseconds
    sha256: str


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member, the extension in lower case; None where webdataset skips the member."""
    match = KEY.match(name)
    if match is None or META.match(name):
        return None
    return match.group(1), match.group(2).lower()


def parse(data: bytes) -> tuple[str, dict[str, memoryview]]:
    """(key, extension -> content) of a sample's range of the tar, in which scanning found no fault: the headers'
    checksums are not looked at again. The contents are views of ``data``, not copies."""
    key, fields, view = "", {}, memoryview(data)
    for member in _members(data, complete=False):
        named = split_name(member.name) if member.regular else None
        if named is not None:
            key = key or named[0]
            fields[named[1]] = view[member.data : member.data + member.size]
    return key, fields


def scan(path: str, name: str | None = None) -> Scan:
    """Find and check the samples of a shard. name: what it is called in errors.

    Raises WorldError, naming file and member, for a cut or compressed shard, one without an end-of-archive mark, and
    keys that are not unique and contiguous: each of them loses samples silently in other readers.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        name = name or path
        if status.st_size == 0:
            raise WorldError(f"{name} is empty, not a tar archive: it was cut short. Restore it from its origin.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _refuse_compressed(name, data[:6])
            offsets = _sample_offsets(name, data)
            view = memoryview(data)
            try:
                crcs = [crc32(view[a:b]) for a, b in pairwise(offsets)]
                digest = hashlib.sha256(view).hexdigest()
            finally:
                view.release()
    found = np.array(offsets, np.int64), np.array(crcs, np.uint32)
    return Scan(*found, status.st_size, status.st_mtime_ns, digest)


def _sample_offsets(path: str, data: mmap.mmap) -> list[int]:
    offsets, seen, extensions, key = [], set(), set(), None
    end = 0
    for member in _checked_members(path, data):
        end = member.end
        named = split_name(member.name) if member.regular else None
        if named is None:
            continue
        if named[0] != key:
            key = named[0]
            if key in seen:
                raise WorldError(
                    f"{path}: the members of sample {key!r} do not stand together ({member.name} comes after another "
                    f"sample's). A shard's samples must be contiguous and their keys unique: write it again in order."
                )
            seen.add(key)
            extensions = set()
            offsets.append(member.start)
        if named[1] in extensions:
            raise WorldError(f"{path}: member {member.name} stands twice in sample {key!r}. Write the shard again.")
        extensions.add(named[1])
    if not offsets:
        raise WorldError(f"{path} holds no samples (files named key.extension).")
    return [*offsets, end]


def _checked_members(path: str, data: mmap.mmap) -> Iterator[Member]:
    """All members; WorldError unless the last one is followed by the end-of-archive mark."""
    cut = "The shard is cut short or damaged: restore it from its origin."
    last = None
    try:
        for member in _members(data, complete=True):
            if member.data + member.size > len(data):
                raise WorldError(f"{path} ends inside member {member.name}. {cut}")
            last = member
            yield member
    except (tarfile.TarError, ValueError) as error:
        after = f" after member {last.name}" if last else ""
        raise WorldError(f"{path} is no readable tar archive{after} ({error}). {cut}") from error
    end = last.end if last else 0
    if data[end : end + len(END)] != END:
        after = f"member {last.name}" if last else "its beginning"
        raise WorldError(f"{path} has no end-of-archive mark after {after}. {cut}")
    if data[end:].strip(b"\0"):
        raise WorldError(
            f"{path} goes on after its end-of-archive mark (archives put end to end?): readers stop at the mark and "
            f"would lose the rest. Write it again as one archive."
        )


def _members(data: bytes | mmap.mmap, complete: bool) -> list[Member]:
    """Members of a whole archive (``complete``), or of a range without an end-of-archive mark."""
    try:
        return list(_walk(data, complete))
    except _Unusual:
        return list(_by_tarfile(data if complete else data[:] + END))


def _walk(data: bytes | mmap.mmap, check: bool) -> Iterator[Member]:
    """The members of a plain archive, up to its end or a block of zeros. Raises _Unusual."""
    at, size = 0, len(data)
    while at + BLOCK <= size:
        head = data[at : at + BLOCK]
        if head[0] == 0 and not any(head):
            return
        kind, magic = head[156:157], head[257:263]
        if kind not in (b"\0", b"0", b"5") or not magic.startswith(b"ustar") or (check and not _checksum_holds(head)):
            raise _Unusual
        if head[345] and magic != b"ustar\0":  # old GNU archives keep times where ustar keeps the name's prefix
            raise _Unusual
        try:
            name = _text(head[:100])
            if prefix := _text(head[345:500]):
                name = f"{prefix}/{name}"
            length = int(_text(head[124:136]).strip() or "0", 8)
        except ValueError as error:  # a size in base 256, or bytes that are not UTF-8
            raise _Unusual from error
        regular = kind != b"5" and not (kind == b"\0" and name.endswith("/"))
        member = Member(name, at, at + BLOCK, length if regular else 0, regular)
        yield member
        at = member.end


def _by_tarfile(data: bytes | mmap.mmap) -> Iterator[Member]:
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as archive:  # type: ignore[call-overload]
        for info in archive:
            if set(archive.pax_headers) - {"comment"}:
                raise ValueError(f"global PAX headers {sorted(archive.pax_headers)} are not supported")
            regular = info.isreg()
            if info.issparse():
                raise ValueError(f"member {info.name} is sparse")
            yield Member(info.name, info.offset, info.offset_data, info.size if regular else 0, regular)


def _checksum_holds(head: bytes) -> bool:
    try:
        stored = int(_text(head[148:156]).strip() or "0", 8)
    except ValueError:
        return False
    return stored == sum(head) - sum(head[148:156]) + 8 * 32


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8")


def _refuse_compressed(path: str, head: bytes) -> None:
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            raise WorldError(
                f"{path} is compressed ({name}): samples cannot be read at random from it. Unpack it to a plain .tar; "
                f"images do not get smaller by compressing them again."
            )
