"""What stands beside the shards: the journal of a set being made, and the record of one that is finished."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from restrain.data.index import TABLE, Entry, replace
from restrain.data.manifest import MANIFEST
from restrain.data.packing.items import SPLITS, SPOOL
from restrain.data.packing.plan import Shard
from restrain.data.packing.writing import Written
from restrain.errors import UserError, WorldError

JOURNAL, RECORD, CLASSES = "restrain-pack.journal", "restrain-pack.json", "classes.txt"
VERSION = 1


class Journal:
    """Lines of JSON: what decides the result, then a line a finished shard. Held by one process at a time.

    Each line is on the disk before the next shard counts; a line that a kill cut short is taken off.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._file = open(folder / JOURNAL, "a+b")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise WorldError(f"Another process is packing into {folder}. Wait for it, or end it.") from None
        self._file.seek(0)
        whole = [line for line in self._file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        self._file.truncate(sum(map(len, whole)))
        try:
            records = [json.loads(line) for line in whole]
            self.decided: dict[str, Any] | None = records[0] if records else None
            self._shards = {record["entry"]["url"]: record for record in records[1:]}
        except (ValueError, KeyError, TypeError) as error:
            self._file.close()
            raise WorldError(f"{folder / JOURNAL} is damaged ({error}). Empty {folder}, and pack again.") from error

    def begin(self, decided: dict[str, Any]) -> None:
        self.decided = decided
        self._append(decided)

    def add(self, written: Written) -> None:
        self._append({**asdict(written), "part": base64.b64encode(written.part).decode()})

    def complete(self, shards: Iterable[Shard]) -> list[Written]:
        """Those of the shards that are finished. One whose time is another than written down is read and compared."""
        found = []
        for shard in shards:
            record = self._shards.get(shard.name)
            if record is not None and _whole(record) and _holds(self._folder / shard.name, Entry(**record["entry"])):
                status = os.stat(self._folder / shard.name)
                entry = Entry(**{**record["entry"], "mtime": status.st_mtime_ns})
                skipped = [(key, reason) for key, reason in record["skipped"]]
                part = base64.b64decode(record["part"])
                found.append(Written(entry, part, record["read"], record["anew"], skipped))
        return found

    def remove(self) -> None:
        (self._folder / JOURNAL).unlink(missing_ok=True)

    def close(self) -> None:
        if self.decided is None:  # nothing was begun
            self.remove()
        self._file.close()

    def _append(self, record: dict) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _holds(path: Path, entry: Entry) -> bool:
    try:
        status = os.stat(path)
        if status.st_size != entry.size:
            return False
        if status.st_mtime_ns == entry.mtime:
            return True
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    except OSError:
        return False


def check_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises UserError that says in what the set in the folder was begun otherwise."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not names:
        return
    said = ", ".join(
        f"{name.replace('_', ' ')} {_said(old.get(name))} there, {_said(new.get(name))} now" for name in names
    )
    raise UserError(
        f"{folder} holds a set that was packed otherwise: {said}. Give the same options to go on with it, or name "
        f"another folder."
    )


def _said(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) < 100 else f"{text[:12]}..."


def finished(folder: Path) -> dict[str, Any] | None:
    """The record of a finished set. Raises WorldError where a shard of it is gone or has another size."""
    try:
        record = json.loads((folder / RECORD).read_text())
        shards = {shard["name"]: shard["size"] for shard in record["shards"]}
        dict(record["options"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorldError(f"{folder / RECORD} cannot be read ({error}). Empty {folder}, and pack again.") from error
    for name, size in shards.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise WorldError(
                f"{path} is {'damaged' if path.is_file() else 'missing'}: {RECORD} lists it with {size:,} bytes. "
                f"Restore it, or empty {folder} and pack again."
            )
    return record


def check_place(folder: Path, source: Path) -> None:
    """Raises UserError for a folder that is a file, part of the source, or holds shards that are not this command's."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder for the shards.")
    real, of_source = folder.resolve(), source.resolve()
    if source.is_dir() and (real == of_source or of_source in real.parents):
        raise UserError(f"{folder} is in {source}: the shards would become part of the source. Name another folder.")
    if not folder.is_dir() or (folder / RECORD).exists() or (folder / JOURNAL).exists():
        return
    prefixes = tuple(f"{split}-" for split in set(SPLITS.values()))
    own = [p.name for p in folder.iterdir() if p.name in (MANIFEST, TABLE) or _is_shard(p.name, prefixes)]
    if own:
        raise UserError(
            f"{folder} holds {min(own)}, which `restrain data pack` did not write. Name an empty folder, or move "
            f"it away."
        )


def _whole(record: dict) -> bool:
    """Whether a shard's record is one that can be used: otherwise the shard is written again."""
    try:
        samples, part = record["entry"]["nsamples"], base64.b64decode(record["part"])
        return samples > 0 and len(part) == 8 * samples + 4 and record["read"] >= 0 and record["anew"] >= 0
    except (KeyError, TypeError, ValueError):
        return False


def _is_shard(name: str, prefixes: tuple[str, ...]) -> bool:
    return name.startswith(prefixes) and name.endswith(".tar")


def sweep(folder: Path) -> None:
    """Take away what a killed process left: halves of shards, and its spool. Call with the journal held."""
    for path in folder.iterdir():
        if path.name.startswith((SPOOL, ".train-", ".val-", ".test-")) and path.is_file():
            path.unlink(missing_ok=True)


def write_classes(folder: Path, classes: list[str] | None) -> None:
    if classes is not None:
        replace(folder / CLASSES, "".join(f"{name}\n" for name in classes).encode(errors="surrogateescape"))


def write_record(folder: Path, record: dict[str, Any]) -> None:
    replace(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode(errors="surrogateescape") + b"\n")
