"""Journals: files of one JSON object a line, written from a thread so that a step pays a list append.

``metrics.jsonl`` and ``ledger.jsonl`` are the truth about a run. A kill may tear the last line; nothing that a
checkpoint vouches for is lost, because both are fsynced before a checkpoint is committed.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from restrain.errors import WorldError
from restrain.run.files import world_error, write_all, write_atomic
from restrain.run.numbers import NAMES, strict

FLUSH_EVERY = 0.25  # seconds


def encode(entry: Mapping[str, Any]) -> str:
    """One line of a journal, strict JSON, without the line end."""
    try:
        return json.dumps(entry, allow_nan=False)
    except ValueError:
        return json.dumps(strict(entry), allow_nan=False)


class Journal:
    """Appends lines to a file from a thread, at least twice a second.

    Args:
        path: the file; a torn last line (a kill in a write) is cut off first.
        guard: called before each flush; the lease's check, so that a displaced process writes nothing more.

    A failure in the thread (disk full, lease lost) is raised by the next call of the owner. After a failure nothing
    more is written, so a journal never has a hole.
    """

    def __init__(self, path: Path, guard: Callable[[], None] | None = None):
        self.path = Path(path)
        self._guard = guard
        self._lines: deque[str | Mapping[str, Any]] = deque()
        self._error: Exception | None = None
        self._writing = threading.Lock()
        self._stop = threading.Event()
        try:
            repair(self.path)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise world_error("open the journal", self.path, error, "then start again") from None
        self._thread = threading.Thread(target=self._run, name=f"journal {self.path.name}", daemon=True)
        self._thread.start()

    def write(self, line: str | Mapping[str, Any]) -> None:
        """Hand over a line: a JSON object as text (no line end) or a mapping, which must not be changed afterwards.

        Raises:
            WorldError: an earlier line could not be written.
        """
        if self._error is not None:
            raise self._error
        self._lines.append(line)

    def sync(self) -> None:
        """Write what was handed over and fsync it. Safe from any thread.

        Raises:
            WorldError: it could not be written.
        """
        self._flush(durable=True)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """:meth:`sync`, then stop the thread and close the file; harmless the second time."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        try:
            self.sync()
        finally:
            with self._writing:
                os.close(self._fd)
                self._fd = -1
                self._error = self._error or WorldError(f"The journal {self.path} is closed.")

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_EVERY):
            self._flush(durable=False)

    def _flush(self, durable: bool) -> None:
        with self._writing:
            if self._error is not None:
                return
            try:
                if self._lines and self._guard is not None:
                    self._guard()
                lines = []
                with contextlib.suppress(IndexError):  # the deque may grow meanwhile: popleft until it is empty
                    while True:
                        line = self._lines.popleft()
                        lines.append(line if isinstance(line, str) else encode(line))
                if lines:
                    write_all(self._fd, ("\n".join(lines) + "\n").encode())
                if durable:
                    os.fsync(self._fd)
            except OSError as error:
                then = "then go on with `restrain resume`; checkpoints and earlier lines are intact"
                self._error = world_error("write the journal", self.path, error, then)
            except Exception as error:
                self._error = error


def repair(path: Path) -> int:
    """Cut a torn last line (one without its line end) off; returns the bytes cut. No file: nothing to do."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        end = os.fstat(fd).st_size
        start, keep = end, 0
        while start > 0 and keep == 0:
            size = min(1 << 16, start)
            start -= size
            keep = os.pread(fd, size, start).rfind(b"\n") + 1
        keep = start + keep
        if keep < end:
            os.ftruncate(fd, keep)
            os.fsync(fd)
        return end - keep
    finally:
        os.close(fd)


def last_step(path: Path) -> int | None:
    """The step of the last whole line; None without one (no file, no line, or no step in it)."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16)))
            tail = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise world_error("read the journal", path, error) from None
    for raw in reversed(tail.splitlines(keepends=True)):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if raw.endswith(b"\n"):
                return int(json.loads(raw)["step"])
    return None


def truncate_after(path: Path, step: int, into: Path) -> int:
    """Move the lines after ``step`` (and torn ones) to ``into/<same name>``; returns how many lines were moved.

    The copy is durable before the journal is replaced, so a kill in between loses nothing; doing it again does not
    copy twice into the same folder. Lines without a step stay.

    Raises:
        WorldError: the files cannot be read or written; the journal is as it was.
    """
    path, copy = Path(path), Path(into) / Path(path).name
    try:
        content = path.read_bytes() if path.exists() else b""
        kept, moved = [], []
        for raw in content.splitlines(keepends=True):
            (moved if _after(raw, step) else kept).append(raw)
        if not moved:
            return 0
        tail = b"".join(moved)
        tail += b"" if tail.endswith(b"\n") else b"\n"
        Path(into).mkdir(parents=True, exist_ok=True)
        before = copy.read_bytes() if copy.exists() else b""
        if not before.endswith(tail):
            write_atomic(copy, before + tail)
        write_atomic(path, b"".join(kept))
        return len(moved)
    except OSError as error:
        raise world_error(f"cut {path.name} back to step {step}", path, error, "then start again") from None


def _after(raw: bytes, step: int) -> bool:
    """Whether a line belongs to a later step, or is torn: what a checkpoint vouches for was fsynced, hence whole."""
    try:
        entry = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        entry = None
    return not isinstance(entry, dict) or entry.get("step", step) > step


def read(path: Path, end: int | None = None) -> list[dict[str, Any]]:
    """The lines of a journal as dicts, NaN and infinities as floats again; a torn last line is left out.

    end: the bytes to read; None: all.

    Raises:
        WorldError: a line in the middle is not a JSON object; the file was damaged.
    """
    try:
        content = Path(path).read_bytes()[:end]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise world_error("read the journal", path, error) from None
    entries = []
    lines = content.split(b"\n")[:-1]  # what follows the last line end is torn, or nothing
    for at, raw in enumerate(lines, 1):
        try:
            entry = json.loads(raw)
            if not isinstance(entry, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise WorldError(
                f"Line {at} of {path} is damaged ({error}). Only a last line may be torn by a kill, so the disk or an "
                "editor did this; delete that line to read the rest."
            ) from None
        for key, value in entry.items():
            if value.__class__ is str and value in NAMES:
                entry[key] = NAMES[value]
        entries.append(entry)
    return entries
