"""Which checkpoints stay: pruning, the pointers LATEST and BEST, and putting right what a kill interrupted.

Nothing here leaves half a checkpoint under a checkpoint's name: what is to go is renamed first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path

from restrain.run.files import remove_temporaries, sync_folder, world_error, write_atomic
from restrain.run.manifest import Damaged, Found, read_manifest, saved
from restrain.run.reader import hold

TEMPORARY = re.compile(r"step-\d+\.tmp-(\d+)")
ASIDE = re.compile(r"step-\d+\.(old-\d+|trash)")


def point(folder: Path, name: str, step: int) -> None:
    """Let the pointer file ``LATEST`` or ``BEST`` name ``step-N``; atomic.

    Raises:
        OSError: the pointer is as it was.
    """
    write_atomic(Path(folder) / name, f"step-{step}\n")


def pointed(folder: Path, name: str) -> Path | None:
    """The checkpoint that ``LATEST`` or ``BEST`` names; None without a pointer, or when its checkpoint is gone."""
    try:
        target = (Path(folder) / name).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = Path(folder) / target
    return path if re.fullmatch(r"step-\d+", target) and path.is_dir() else None


def prune(folder: Path, keep: int | None, step: int) -> None:
    """Remove the checkpoints beyond the ``keep`` newest (None: all stay), up to the one of ``step``. Never BEST's, nor
    one that is being read.

    Later steps are left alone: they are damaged ones that this attempt passed over, and will be replaced.
    """
    for path in folder.iterdir():
        if ASIDE.fullmatch(path.name):
            remove(path)
    if keep is None:
        return
    best = pointed(folder, "BEST")
    old = [path for at, path in saved(folder) if at <= step and path.suffix == ""]
    for path in old[keep:]:
        if best is None or path.name != best.name:
            remove(path)


def remove(path: Path) -> None:
    """Remove a checkpoint unless it is being read: renamed first, so that a kill leaves no half of one."""
    lock = None
    try:
        with contextlib.suppress(FileNotFoundError):  # no manifest: nothing to read
            lock = hold(path, exclusive=True)
        trash = path if path.suffix == ".trash" else path.with_name(path.name.partition(".")[0] + ".trash")
        if trash != path and path.exists():
            shutil.rmtree(trash, ignore_errors=True)
            os.rename(path, trash)
        shutil.rmtree(trash, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EPERM, errno.EBUSY, errno.ENOTEMPTY):
            raise
    finally:
        if lock is not None:
            os.close(lock)


def clean(folder: Path, attempt: int, found: Found | None = None) -> Found | None:
    """Remove what killed attempts left, and put right what a kill interrupted. For the lease's holder, at a start.

    Args:
        folder: ``checkpoints/``.
        attempt: the present one; its own temporary folders stay.
        found: what :func:`newest` returned: it takes its own name back if it was set aside, and LATEST (BEST, if it
            was saved as the best) name it.

    Returns:
        ``found`` with the path that it has now.

    Raises:
        WorldError: the folder cannot be changed.
    """
    folder = Path(folder)
    try:
        if found is not None and found.path is not None and found.step is not None:
            found = Found(found.step, _settle(folder, found.step, found.path), found.problems)
        for path in folder.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            if ASIDE.fullmatch(path.name) or (match and int(match[1]) != attempt):
                shutil.rmtree(path, ignore_errors=True)
        remove_temporaries(folder)
    except OSError as error:
        raise world_error("clean up the checkpoints", folder, error, "then start again") from None
    return found


def _settle(folder: Path, step: int, path: Path) -> Path:
    final = folder / f"step-{step}"
    if path != final:  # killed between setting it aside and renaming its successor
        if final.exists():
            shutil.rmtree(final)  # does not verify: newest() looks there first
        os.rename(path, final)
        sync_folder(folder)
    point(folder, "LATEST", step)
    with contextlib.suppress(Damaged):
        best = pointed(folder, "BEST")
        if read_manifest(final)["best"] and (best is None or int(best.name[5:]) < step):
            point(folder, "BEST", step)
    return final
