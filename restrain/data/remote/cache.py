"""The shards that a node holds: files named by their SHA-256, shared by its processes through locks of the kernel.

A shard in use is open and locked (shared) by each process that uses it; a killed process leaves no lock behind. Only a
file that nobody has locked is ever taken away: first those marked as past, then those used longest ago.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from restrain.data.remote.fetching import Sink
from restrain.errors import UserError, WorldError

Fetch = Callable[[Sink], object]
"""Writes one object, whole, into a sink."""


class FileSink:
    """A file that is written from the beginning, its SHA-256 computed on the way."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self.restart()

    def restart(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.size, self._digest = 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.size += len(data)
        self._digest.update(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class Cache:
    """A folder of shards with a budget in bytes (None: no bound)."""

    def __init__(self, folder: str | Path, budget: int | None = None):
        self.folder, self.budget = Path(folder), budget
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorldError(
                f"The cache {self.folder} cannot be made: {error.strerror}. Name another folder with data.cache=FOLDER."
            ) from error

    def acquire(self, name: str, sha256: str, size: int, fetch: Fetch) -> int:
        """A descriptor of the shard, read-only and locked against eviction until it is closed.

        It is fetched where the node has it not, once whatever the number of processes that want it. Raises WorldError
        for content that is not the indexed one and for a full cache or disk.
        """
        path = self.folder / f"{sha256}.tar"
        if (descriptor := self._pinned(path, size)) is not None:
            return descriptor
        asked, failure = time.time(), self.folder / f"{sha256}.failed"
        with _locked(self.folder / f"{sha256}.lock"):
            if (descriptor := self._pinned(path, size)) is not None:
                return descriptor  # another process was faster
            _raise_failure(failure, asked)
            part = path.with_suffix(".part")
            descriptor = _claimed(part)
            try:
                sink = FileSink(descriptor)  # what a killed process left is thrown away
                self._make_room(name, size, part)
                fetch(sink)
                if (sink.size, sink.sha256) != (size, sha256):
                    sink.restart()
                    fetch(sink)  # once more: it may have been damaged on the way
                if (sink.size, sink.sha256) != (size, sha256):
                    raise WorldError(
                        f"{name} is not what its index says: {sink.size} bytes with SHA-256 {sink.sha256[:16]}..., "
                        f"indexed are {size} with {sha256[:16]}... Restore it, or index the set again."
                    )
                os.fsync(descriptor)
                os.replace(part, path)
                return descriptor
            except BaseException as error:
                os.close(descriptor)
                part.unlink(missing_ok=True)
                if isinstance(error, WorldError):
                    with suppress(OSError):
                        failure.write_text(str(error))
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    free = os.statvfs(self.folder)
                    raise WorldError(
                        f"The disk of the cache {self.folder} is full: {name} has {size} bytes and "
                        f"{free.f_bavail * free.f_frsize} are free. Free some, name another folder with data.cache, or "
                        f"set data.cache_bytes below what the disk holds."
                    ) from error
                raise

    def retire(self, sha256: str) -> None:
        """Mark a shard as past: the first to go when room is needed."""
        with suppress(FileNotFoundError):
            os.utime(self.folder / f"{sha256}.tar", (0, 0))

    def check_budget(self, live: int) -> None:
        """Raises UserError where shards of ``live`` bytes, all needed at the same time, do not fit."""
        if self.budget is not None and live > self.budget:
            raise UserError(
                f"data.cache_bytes={self.budget} is too small: the shards that are read side by side have {live} "
                f"bytes. Give the cache at least that, or make data.lanes or data.window smaller."
            )

    def _pinned(self, path: Path, size: int) -> int | None:
        """The shard, locked shared, if the cache has it."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if status.st_nlink and status.st_size == size:
            with suppress(OSError):
                os.utime(path)
            return descriptor
        os.close(descriptor)  # evicted in between, or cut by somebody: fetched anew
        return None

    def _make_room(self, name: str, size: int, own: Path) -> None:
        """Take away unused shards until ``size`` more bytes fit, and claim them for the part file ``own``."""
        if self.budget is None:
            return
        with _locked(self.folder / "evict.lock"):
            files = []
            for path in [*self.folder.glob("*.tar"), *self.folder.glob("*.part")]:
                with suppress(FileNotFoundError):
                    files.append((path, path.stat()))
            used = sum(status.st_size for path, status in files if path != own)
            for path, status in sorted(files, key=lambda file: file[1].st_mtime_ns):
                if used + size <= self.budget:
                    break
                if path != own and _remove_unused(path):
                    used -= status.st_size
            if used + size > self.budget:
                raise WorldError(
                    f"The cache {self.folder} is full: data.cache_bytes={self.budget}, {used} bytes are in use by "
                    f"running processes and {name} needs {size}. Give it more, or make data.lanes or data.window "
                    f"smaller."
                )
            os.truncate(own, size)  # counted by the next one that asks, though not written yet


def _raise_failure(failure: Path, since: float) -> None:
    """Raises WorldError where another process failed to fetch the same shard while this one waited for it: to try again
    as long would take both together past the time after which collectives give up."""
    try:
        if failure.stat().st_mtime >= since:
            raise WorldError(failure.read_text())
    except FileNotFoundError:
        return


def _claimed(part: Path) -> int:
    """The part file, locked against removal: one that a killed process left may be removed at any time."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _remove_unused(path: Path) -> bool:
    """Remove a shard unless some process has it locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise WorldError(
            f"The cache {path.parent} cannot be written: {error.strerror}. Name another folder with data.cache=FOLDER."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
