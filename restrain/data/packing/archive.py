"""The members of a plain tar, also of one inside another, found without unpacking anything."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from restrain.data.packing.items import Span
from restrain.data.tars import BLOCK, COMPRESSED
from restrain.errors import WorldError

CUT = "It is cut short or damaged: fetch it again."


class Section(io.RawIOBase):
    """A range of a file as a file of its own."""

    def __init__(self, fd: int, start: int, size: int):
        self._fd, self._start, self._size, self._at = fd, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer) -> int:
        data = os.pread(self._fd, max(0, min(len(buffer), self._size - self._at)), self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def members(path: Path, within: Span | None = None, title: str = "") -> Iterator[tuple[str, Span]]:
    """(name, place) of each regular file of the tar, or of the tar that stands at ``within`` in it.

    Links and devices are passed over: their names are never followed. Raises WorldError, naming the archive (``title``
    of one inside), where it is compressed, cut short or goes on after a damaged header.
    """
    title = title or str(path)
    with open(path, "rb") as file:
        fd = file.fileno()
        start, size = (within.offset, within.size) if within else (0, os.fstat(fd).st_size)
        kind = compression(os.pread(fd, 6, start))
        if kind:
            raise WorldError(f"{title} is compressed ({kind}), the original is a plain tar. Unpack it: gunzip or so.")
        end = 0
        try:
            with tarfile.open(fileobj=Section(fd, start, size), mode="r:", errors="surrogateescape") as archive:
                for member in archive:
                    end = member.offset_data + (-(-member.size // BLOCK) * BLOCK if member.isreg() else 0)
                    if end > size:
                        raise WorldError(f"{title} ends inside member {member.name}. {CUT}")
                    if member.isreg() and not member.issparse():
                        yield member.name, Span(str(path), start + member.offset_data, member.size)
        except (tarfile.TarError, ValueError) as error:
            raise WorldError(f"{title} is no readable tar archive ({error}). {CUT}") from error
        tail = os.pread(fd, min(2 * BLOCK, max(0, size - end)), start + end)
        if len(tail) < 2 * BLOCK or any(tail):
            raise WorldError(f"{title} has no end-of-archive mark where its members end. {CUT}")


def compression(head: bytes) -> str | None:
    """What the first bytes say a file is compressed with."""
    return next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)


def read(span: Span, most: int = 1 << 26) -> bytes:
    """The bytes at a place. Raises WorldError where there are fewer, or more than ``most`` are claimed."""
    if span.size > most:
        raise WorldError(f"{span.file}: a member claims {span.size:,} bytes, expected are {most:,} at most. {CUT}")
    with open(span.file, "rb") as file:
        data = os.pread(file.fileno(), span.size, span.offset)
    if len(data) != span.size:
        raise WorldError(f"{span.file} ends at byte {span.offset + len(data)}, inside a member. {CUT}")
    return data
