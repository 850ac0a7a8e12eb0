"""Packing a set: list it, shuffle the listing, cut it into shards, write them side by side, and go on after a kill.

What is done so far stands in ``.restrain-pack`` in the target, a record a shard, until all is written; then
``restrain-pack.json`` says what the shards were made from and how. The same source and options give the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from restrain import draws
from restrain.data import index
from restrain.data.images import DecodeError
from restrain.data.index import Entry
from restrain.data.indexing import Reporter
from restrain.data.packing.content import Encoding, stored
from restrain.data.packing.items import Item, Listing
from restrain.data.packing.writer import write_shard
from restrain.draws import Purpose
from restrain.errors import UserError, WorldError

RECORD, PROGRESS, CLASSES = "restrain-pack.json", ".restrain-pack", "classes.txt"
PROBED = 64  # images that are made smaller to learn how much smaller they get
VERSION = 1


@dataclass(frozen=True)
class Options:
    """shard_bytes: what a shard is filled up to. skip_bad: leave out what cannot be decoded, and list it."""

    shard_bytes: int = 128_000_000
    shuffle: bool = True
    seed: int = 0
    encoding: Encoding = field(default_factory=Encoding)
    skip_bad: bool = False


@dataclass
class Packed:
    """A split as it was written. skipped: [image, why]."""

    split: str
    shards: int
    samples: int
    bytes: int
    source_bytes: int
    skipped: list[list[str]]
    already: bool  # there was nothing left to do


def pack(listings: Sequence[Listing], target: Path, options: Options, workers: int, reporter: Reporter) -> list[Packed]:
    """Write the splits into ``target`` and index them. Raises UserError for a target that is in use or holds another
    set, WorldError for images that cannot be decoded and for a full disk."""
    target.mkdir(parents=True, exist_ok=True)
    with _held(target):
        classes = _classes(listings, target)
        jobs = [_Job(listing, target, options) for listing in listings]
        _check_space(target, [job for job in jobs if not job.finished])
        total, before = sum(job.listing.bytes for job in jobs), 0
        packed = []
        for job in jobs:
            packed.append(job.run(workers, lambda done, before=before: reporter.progress(before + done, total)))
            before += job.listing.bytes
        parts = {name: part for job in jobs for name, part in job.parts.items()}
        if parts:
            _finish(target, jobs, parts, classes)
    return packed


class _Job:
    """A split on its way. parts: shard -> entry and table part, of shards that this call found or wrote."""

    def __init__(self, listing: Listing, target: Path, options: Options):
        self.listing, self.target, self.options = listing, target, options
        self.wanted = {
            "images": len(listing.items),
            "listing": listing.digest(),
            "library": options.encoding.library,
            **asdict(options),
        }
        done = _read(target / RECORD).get("splits", {}).get(listing.split)
        self.finished = done is not None
        self.progress = target / PROGRESS / listing.split
        self.parts: dict[str, tuple[Entry, bytes]] = {}
        self.record = done or self.wanted
        _check_same(self.wanted, done or _read(self.progress / "options.json") or self.wanted, listing.split, target)
        if (
            not self.finished
            and not self.progress.is_dir()
            and (found := sorted(target.glob(f"{listing.split}-*.tar")))
        ):
            raise UserError(
                f"{target} holds {found[0].name}, which this command did not write. Name another folder, or move the "
                f"shards away."
            )

    def run(self, workers: int, progress: Any) -> Packed:
        if self.finished:
            return self._packed(already=True)
        self.progress.mkdir(parents=True, exist_ok=True)
        index.replace(self.progress / "options.json", json.dumps(self.wanted).encode())
        for left in self.target.glob(f".{self.listing.split}-*.tar.*"):
            left.unlink()  # of a process that was killed
        shards = self._cut()
        names = [f"{self.listing.split}-{number:06d}.tar" for number in range(len(shards))]
        done, skipped, size = 0, [], 0
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._shard, name, items) for name, items in zip(names, shards, strict=True)]
            try:
                for name, items, future in zip(names, shards, futures, strict=True):
                    entry, part, left_out = future.result()
                    self.parts[name] = (entry, part)
                    skipped += left_out
                    size += entry.size
                    done += sum(item.size for item in items)
                    progress(done)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        samples = len(self.listing.items) - len(skipped)
        self.record = {**self.wanted, "shards": len(names), "samples": samples, "bytes": size, "skipped": skipped}
        return self._packed(already=False)

    def _packed(self, already: bool) -> Packed:
        counts = {name: self.record[name] for name in ("shards", "samples", "bytes", "skipped")}
        return Packed(self.listing.split, source_bytes=self.listing.bytes, already=already, **counts)

    def _shard(self, name: str, items: Sequence[Item]) -> tuple[Entry, bytes, list[list[str]]]:
        """Write a shard unless a call before this one did."""
        note, table = self.progress / f"{name}.json", self.progress / f"{name}.part"
        known, path = _read(note), self.target / name
        if known and table.is_file() and path.is_file() and path.stat().st_size == known["entry"]["size"]:
            return Entry(**known["entry"]), table.read_bytes(), known["skipped"]
        skipped: list[list[str]] = []
        entry, part = write_shard(path, self._samples(items, skipped))
        index.replace(table, part)
        index.replace(note, json.dumps({"entry": asdict(entry), "skipped": skipped}).encode())
        return entry, part, skipped

    def _samples(self, items: Sequence[Item], skipped: list[list[str]]) -> Iterator[tuple[str, Any]]:
        for item in items:
            try:
                yield stored(item, self.options.encoding)
            except DecodeError as error:
                if not self.options.skip_bad:
                    raise WorldError(
                        f"{item.path}: image {item.key} {error}. Restore it, or leave such images out with --skip-bad; "
                        f"what is written so far is kept, and the same command goes on."
                    ) from None
                skipped.append([item.key, str(error)])

    def _cut(self) -> list[list[Item]]:
        """The items of each shard."""
        items, options = self.listing.items, self.options
        if options.shuffle:
            order = draws.permutation(len(items), options.seed, Purpose.PACK, draws.name_key(self.listing.split))
            items = [items[i] for i in order]
        scale = self._scale(items[:PROBED])
        shards, room = [], 0.0
        for item in items:
            size = 2 * 1024 + item.size * scale  # with its headers, its label and what fills its blocks
            if not shards or size > room:
                shards.append([])
                room = float(options.shard_bytes)
            shards[-1].append(item)
            room -= size
        return shards

    def _scale(self, items: Sequence[Item]) -> float:
        """By how much images get smaller, learned from a few of them."""
        before = after = 0
        if self.options.encoding.short_side is not None:
            for item in items:
                try:
                    after += sum(len(content) for _, content in stored(item, self.options.encoding)[1])
                    before += item.size
                except DecodeError:
                    continue
        return after / before if before else 1.0


def _finish(
    target: Path, jobs: Sequence[_Job], parts: dict[str, tuple[Entry, bytes]], classes: list[str] | None
) -> None:
    """The index, the names of the classes and the record; the last one says that all is there."""
    old = index.load(target)
    for number, entry in enumerate(old.entries if old else ()):
        if entry.url not in parts and (target / entry.url).is_file():
            parts[entry.url] = (entry, old.part(number).tobytes())  # type: ignore[union-attr]
    index.save([target], "shards", [parts[name] for name in sorted(parts)])
    if classes is not None:
        index.replace(target / CLASSES, "".join(f"{name}\n" for name in classes).encode("utf-8", "surrogateescape"))
    splits = _read(target / RECORD).get("splits", {})
    splits |= {job.listing.split: job.record for job in jobs}
    record = {"version": VERSION, "splits": dict(sorted(splits.items()))}
    index.replace(target / RECORD, json.dumps(record, indent=1).encode())
    for job in jobs:
        shutil.rmtree(job.progress, ignore_errors=True)


def _classes(listings: Sequence[Listing], target: Path) -> list[str] | None:
    """Names of the classes, the same in all splits and in what the target holds."""
    path = target / CLASSES
    known = path.read_text("utf-8", "surrogateescape").splitlines() if path.is_file() else None
    for listing in listings:
        if listing.classes is not None and known is not None and listing.classes != known:
            raise UserError(
                f"The classes of split {listing.split} are not those of {path}, so numbers would mean different "
                f"classes. Pack into another folder, or make the sources' classes the same."
            )
        known = listing.classes or known
    if known is not None and any("\n" in name for name in known):
        raise UserError("A class has a line break in its name. Rename its folder.")
    return known


def _check_same(wanted: dict[str, Any], found: dict[str, Any], split: str, target: Path) -> None:
    wanted = json.loads(json.dumps(wanted))
    differing = [key for key, value in wanted.items() if found.get(key) != value]
    if differing:
        what = "; ".join(f"{key}: {_short(found.get(key))} there, {_short(wanted[key])} now" for key in differing)
        raise UserError(
            f"{target} holds split {split} of another packing ({what}). Name another folder, or remove this one."
        )


def _short(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 60 else f"{text[:16]}..."


def _check_space(target: Path, jobs: Sequence[_Job]) -> None:
    needed = sum(job.listing.bytes + 2048 * len(job.listing.items) for job in jobs)
    written = sum(path.stat().st_size for job in jobs for path in target.glob(f"{job.listing.split}-*.tar"))
    free = shutil.disk_usage(target).free
    smaller = any(job.options.encoding.short_side is not None for job in jobs)  # by how much is not known yet
    if needed - written > free and not smaller:
        raise WorldError(
            f"{target} has {free / 1e9:.1f} GB free, and the shards need {(needed - written) / 1e9:.1f} GB. Free some, "
            f"name another folder, or pack smaller images (--short-side)."
        )


@contextmanager
def _held(target: Path) -> Iterator[None]:
    folder = target / PROGRESS
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{target} is being packed by another process. Wait for it, or end it.") from None
    for left in folder.glob("spool-*"):
        if left.name != f"spool-{os.getpid()}":
            left.unlink(missing_ok=True)  # of a process that was killed
    try:
        yield
    finally:
        if not any(path.is_dir() for path in folder.iterdir()):  # nothing is unfinished
            shutil.rmtree(folder)
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
