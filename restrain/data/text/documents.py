"""Where text comes from: files, cut into parts of some 64 MB that are read side by side. No torch here.

A .txt file is a document (or, with a separator, several), a line of a .jsonl file is one. A part is a run of small
files, a range of bytes of one large .jsonl, or one other large file.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

from restrain.errors import UserError, WorldError

PART = 64 << 20  # bytes
MOST = 128  # parts, or about so many: each stays mapped while shards are gathered, which holds a file descriptor
PACKED = (".jsonl.gz", ".jsonl.zst")
LINES = (".jsonl", *PACKED)
NAMES = (".txt", *LINES)


@dataclass(frozen=True)
class Reading:
    """How a text is read. field: of a JSON line. separator: between the documents of a .txt file, or None."""

    field: str = "text"
    separator: str | None = None


@dataclass(frozen=True)
class Part:
    """What is read at a time. first, last: bytes of a single .jsonl file, lines that begin there. cut: of a single
    text, the shares [from, to) of its characters."""

    files: tuple[str, ...]
    first: int = 0
    last: int | None = None
    cut: tuple[Fraction, Fraction] | None = None


def list_files(source: Path) -> list[tuple[str, int]]:
    """(path, bytes) of a file, or of all text below a folder in byte order. Raises UserError where there is none."""
    if source.is_file():
        paths = [source]
    elif source.is_dir():
        below = (path for path in source.rglob("*") if path.name.endswith(NAMES) and path.is_file())
        shown = (path for path in below if not any(p.startswith(".") for p in path.relative_to(source).parts))
        paths = sorted(shown, key=os.fsencode)
    else:
        raise UserError(f"{source} does not exist. Name a text file, or a folder of {', '.join(NAMES)} files.")
    if not paths:
        raise UserError(f"{source} holds no text: none of its files is named {', '.join(NAMES)}.")
    return [(str(path), path.stat().st_size) for path in paths]


def cut_parts(files: Sequence[tuple[str, int]], size: int | None = None) -> list[Part]:
    """The parts of some files, in their order; the same whoever asks. size: bytes of each; None: by the whole."""
    size = size or max(PART, sum(length for _, length in files) // MOST)
    parts: list[Part] = []
    small: list[str] = []
    held = 0

    def flush() -> None:
        nonlocal held
        if small:
            parts.append(Part(tuple(small)))
        small.clear()
        held = 0

    for path, length in files:
        if path.endswith(".jsonl") and length > size:
            flush()
            parts += [Part((path,), first, min(first + size, length)) for first in range(0, length, size)]
            continue
        if small and held + length > size:
            flush()
        small.append(path)
        held += length
    flush()
    return parts


def read(part: Part, how: Reading) -> Iterator[str]:
    """The documents of a part, empty ones left out.

    Raises WorldError for bytes that are no UTF-8, broken JSON or a damaged archive, UserError for a line without the
    field; each names the file and the place.
    """
    for path in part.files:
        try:
            if path.endswith(LINES):
                yield from _lines(path, part, how.field)
            else:
                yield from _texts(path, part, how.separator)
        except OSError as error:
            raise WorldError(f"{path} cannot be read: {error.strerror or error}. Restore it.") from error


def _texts(path: str, part: Part, separator: str | None) -> Iterator[str]:
    text = _decoded(Path(path).read_bytes(), path)
    if part.cut is not None:
        first, last = (len(text) * share.numerator // share.denominator for share in part.cut)
        text = text[first:last]
    yield from filter(None, [text] if separator is None else text.split(separator))


def _decoded(data: bytes, path: str, before: int = 0) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at = before + error.start
        raise WorldError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} at offset {at} begins no character. Convert the file "
            f"(iconv -f ENCODING -t UTF-8), or leave it out."
        ) from error


def _lines(path: str, part: Part, field: str) -> Iterator[str]:
    with _opened(path) as file:
        at = part.first
        if at:  # a line that begins before this part is the part's before it
            file.seek(at - 1)
            at += len(file.readline()) - 1
        number = 1
        while part.last is None or at < part.last:
            line = _next(file, path)
            if not line:
                return
            if line.strip():
                text = _text(line, path, at, number, field)
                if text:
                    yield text
            at, number = at + len(line), number + 1


def _text(line: bytes, path: str, at: int, number: int, field: str) -> str:
    def where() -> str:
        before = _lines_before(path, at) if at and not path.endswith(PACKED) else number - 1
        return f"{path}, line {before + 1}"

    try:
        record = json.loads(_decoded(line, path, at))
    except (ValueError, RecursionError) as error:
        raise WorldError(
            f"{where()} is no JSON ({getattr(error, 'msg', error)}). Repair it, or leave it out."
        ) from error
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        has = f"its fields are {', '.join(map(repr, record))}" if isinstance(record, dict) else "it is no object"
        raise UserError(f"{where()} has no text under {field!r}: {has}. Name the field with --field.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # \ud800 alone
        raise WorldError(f"{where()} has half of a surrogate pair, which is no character. Repair it.") from error
    return text


def _lines_before(path: str, at: int) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in io.BytesIO(file.read(at)))


def _opened(path: str) -> io.BufferedIOBase:
    if path.endswith(".gz"):
        return cast(io.BufferedIOBase, gzip.open(path))
    return io.BufferedReader(_Zstd(path)) if path.endswith(".zst") else open(path, "rb")


def _next(file: io.BufferedIOBase, path: str) -> bytes:
    try:
        return file.readline()
    except (EOFError, OSError, zlib.error) as error:
        raise WorldError(f"{path} is a damaged archive: {error}. Restore it from its origin.") from error


class _Zstd(io.RawIOBase):
    """A .zst file of any number of frames. zstandard's own reader takes a cut frame for the end; this one does not."""

    def __init__(self, path: str):
        self._file, self._frame, self._left = open(path, "rb"), None, b""  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        import zstandard

        while not self._left:
            data = self._file.read(1 << 17)
            if not data:
                if self._frame is not None:
                    raise OSError("it ends within a frame")
                return 0
            try:
                self._left = self._expanded(data, zstandard)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def _expanded(self, data: bytes, zstandard) -> bytes:
        out = []
        while data:
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            out.append(self._frame.decompress(data))
            data = b""
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None
        return b"".join(out)

    def close(self) -> None:
        self._file.close()
        super().close()
