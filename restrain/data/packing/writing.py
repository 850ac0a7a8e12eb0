"""Writes one shard: plain ustar, nothing in it that differs from run to run; offsets and checksums on the way."""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from restrain.data.checksum import crc32
from restrain.data.images import DecodeError
from restrain.data.index import Entry, shard_part
from restrain.data.packing.items import WHOLE, Item, Part, Span
from restrain.data.packing.plan import Shard
from restrain.data.packing.recode import Recoding, recoded
from restrain.data.tars import BLOCK, END
from restrain.errors import UserError, WorldError

OPEN = 64  # archives open at a time


@dataclass(frozen=True)
class Job:
    """A shard to write into ``folder``. skip_bad: leave out what cannot be decoded."""

    folder: Path
    shard: Shard
    recoding: Recoding = field(default_factory=Recoding)
    skip_bad: bool = False


@dataclass(frozen=True)
class Written:
    """A shard as it is on the disk, and its part of the index' table. skipped: (key, reason) of bad samples."""

    entry: Entry
    part: bytes
    read: int  # bytes of images read
    anew: int  # images encoded anew
    skipped: list[tuple[str, str]]


def write_shard(job: Job) -> Written:
    """Write it to a temporary file, to the disk, and under its name. Raises WorldError and UserError by name."""
    path = job.folder / job.shard.name
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            tar = Tar(file)
            written = _fill(tar, job)
            tar.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(job.folder)
    except OSError as error:
        raise WorldError(
            f"{path} cannot be written: {error.strerror or error}. The shards that are complete stay; free some space "
            f"or repair the disk, and run the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    status = os.stat(path)
    offsets, crcs = np.array(tar.offsets, np.int64), np.array(tar.crcs, np.uint32)
    entry = Entry(path.name, len(crcs), status.st_size, tar.digest.hexdigest(), status.st_mtime_ns, 0, 0)
    return Written(entry, shard_part(offsets, crcs), *written)


def _fill(tar: Tar, job: Job) -> tuple[int, int, list[tuple[str, str]]]:
    read = anew = 0
    skipped: list[tuple[str, str]] = []
    with Files() as files:
        files.announce(job.shard.items)
        for item in job.shard.items:
            try:
                members, count = _members(item, files, job.recoding)
            except DecodeError as error:
                if not job.skip_bad:
                    raise UserError(
                        f"{item.origin or item.key} {error}. Repair it or move it away, or leave such images out with "
                        f"--skip-bad."
                    ) from error
                skipped.append((item.key, str(error)))
                continue
            tar.sample(item.key, members)
            anew += count
            read += sum(part.size for part in item.parts)
    if not tar.crcs:
        raise UserError(f"All {len(skipped)} images of {job.shard.name} are bad; the first is {skipped[0][0]}: "
                        f"{skipped[0][1]}.")  # fmt: skip
    return read, anew, skipped


def _members(item: Item, files: Files, recoding: Recoding) -> tuple[list[tuple[str, bytes]], int]:
    """(extension, content) of each file of a sample, and how many were encoded anew."""
    members, anew = [], 0
    for part in item.parts:
        data = files.read(part)
        if part.image:
            image = recoded(data, part.extension, recoding)
            members.append((image.extension, image.data))
            anew += image.anew
        else:
            members.append((part.extension, data))
    extensions = [extension for extension, _ in members]
    if len(set(extensions)) < len(extensions):
        raise UserError(f"{item.origin or item.key} would have two files .{max(extensions, key=extensions.count)}: two "
                        f"images of one format. Take one out.")  # fmt: skip
    return members, anew


class Tar:
    """A tar that keeps account: where samples begin, CRC-32 of each, SHA-256 of all."""

    def __init__(self, file):
        self._file = file
        self.offsets: list[int] = [0]
        self.crcs: list[int] = []
        self.digest = hashlib.sha256()

    def sample(self, key: str, members: list[tuple[str, bytes]]) -> None:
        crc = size = 0
        for extension, content in members:
            for data in (_header(f"{key}.{extension}", len(content)), content, bytes(-len(content) % BLOCK)):
                crc = crc32(data, crc)
                size += len(data)
                self._put(data)
        self.crcs.append(crc)
        self.offsets.append(self.offsets[-1] + size)

    def close(self) -> None:
        """The end-of-archive mark, padded to a record as tar does."""
        size = self.offsets[-1] + len(END)
        self._put(END + bytes(-size % tarfile.RECORDSIZE))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o444, 0
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as error:
        raise UserError(f"{name[:60]!r} cannot be a member of a ustar archive ({error}). Rename the file.") from error


class Files:
    """Bytes at places. Archives stay open, images that are files do not."""

    def __init__(self):
        self._open: dict[str, int] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def announce(self, items: list[Item]) -> None:
        """Tell the system what will be read of archives, in the order of the disk: samples are scattered over them."""
        spans = [p.where for item in items for p in item.parts if isinstance(p.where, Span) and p.where.offset != WHOLE]
        for span in sorted(spans) if hasattr(os, "posix_fadvise") else ():
            os.posix_fadvise(self._fd(span.file), span.offset, span.size, os.POSIX_FADV_WILLNEED)

    def read(self, part: Part) -> bytes:
        if isinstance(part.where, bytes):
            return part.where
        file, offset, size = part.where
        try:
            if offset == WHOLE:
                with open(file, "rb") as whole:
                    data = whole.read(size + 1)
            else:
                data = _pread(self._fd(file), offset, size)
        except OSError as error:
            raise _unreadable(file, error) from error
        if len(data) != size:
            raise WorldError(
                f"{file} was changed since it was listed: {size} bytes were expected. Run the command again when "
                f"nothing writes there."
            )
        return data

    def _fd(self, file: str) -> int:
        if file not in self._open:
            if len(self._open) >= OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            try:
                self._open[file] = os.open(file, os.O_RDONLY)
            except OSError as error:
                raise _unreadable(file, error) from error
        return self._open[file]


def _unreadable(file: str, error: OSError) -> WorldError:
    return WorldError(f"{file} cannot be read: {error.strerror}. Repair it, and run the same command again.")


def _pread(fd: int, offset: int, size: int) -> bytes:
    found = b""
    while len(found) < size and (more := os.pread(fd, size - len(found), offset + len(found))):
        found += more
    return found


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
