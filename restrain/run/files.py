"""Files that are whole or absent: every write goes to a temporary name, is fsynced, and is then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from restrain.errors import WorldError

ADVICE = {
    errno.ENOSPC: "The disk is full: free some space",
    errno.EDQUOT: "Your disk quota is used up: free some space",
    errno.EACCES: "You have no permission there: make the folder writable or choose another one",
    errno.EPERM: "You have no permission there: make the folder writable or choose another one",
    errno.EROFS: "The file system is read-only: choose another folder",
    errno.EIO: "The disk or the file server reports a fault: look at its state",
}


def world_error(doing: str, path: Path | str, error: OSError, then: str = "") -> WorldError:
    """The :class:`WorldError` of an :class:`OSError`: what was being done, to which file, and what to do now."""
    where = error.filename or path
    advice = ADVICE.get(error.errno or 0, "Look at that folder and its disk")
    after = f", {then}" if then else ""
    return WorldError(f"Cannot {doing} ({where}): {error.strerror or error}. {advice}{after}.")


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` (``os.write`` may write less, above all on a disk that is filling up)."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(path: Path | str) -> None:
    """Fsync a folder: a rename in it is durable only then. Silent where file systems do not offer it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Replace ``path`` by ``data``: after a crash at any instant it holds the old content or the new one.

    Raises:
        OSError: the old content is intact and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        try:
            write_all(fd, data.encode() if isinstance(data, str) else data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed :func:`write_atomic` left in ``folder``."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            os.unlink(path)
