"""Packing a whole source: list, plan, write the shards that are missing, index, record."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restrain import __version__
from restrain.data import index
from restrain.data.indexing import Reporter
from restrain.data.packing import plan, record
from restrain.data.packing.items import Item, Listing, Spool
from restrain.data.packing.plan import Shard
from restrain.data.packing.recode import Recoding, recoded, versions
from restrain.data.packing.source import Source, list_source
from restrain.data.packing.writing import Files, Job, Written, write_shard
from restrain.errors import UserError, WorldError

MANY = 8  # workers, unless more are asked for
TRIED = 64  # images that are encoded anew to see how small they become


@dataclass(frozen=True)
class Settings:
    """How to pack. seed: of the shuffle, None keeps the source's order; shard_size: bytes, a target."""

    seed: int | None = 0
    shard_size: int = 128_000_000
    recoding: Recoding = field(default_factory=Recoding)
    skip_bad: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Packed:
    """What was made, or was there: the record beside the shards, and whether it was finished before."""

    record: dict[str, Any]
    before: bool = False


def pack(source: Source, folder: Path, settings: Settings, reporter: Reporter | None = None) -> Packed:
    """Pack the source into shards in ``folder``, or go on with what a killed call began.

    The same source and settings give the same bytes, whatever the workers. Raises UserError and WorldError; shards that
    are complete stay.
    """
    reporter = reporter or Reporter()
    record.check_place(folder, source.path)
    options = _options(source, settings)
    if (old := record.finished(folder)) is not None:
        record.check_same(folder, old["options"], options)
        return Packed(old, before=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        journal = record.Journal(folder)
    except OSError as error:
        raise WorldError(f"{folder} cannot be written: {error.strerror}. Name another folder.") from error
    spool = Spool(folder)
    try:
        record.sweep(folder)
        if journal.decided is not None:
            record.check_same(folder, journal.decided["options"], options)
        packed = _Packing(source, folder, settings, options, journal, spool, reporter).run()
        spool.close()
        record.sweep(folder)  # again: a process of a killed call may have outlived it for a moment
        return packed
    finally:
        spool.close()
        journal.close()


def _options(source: Source, settings: Settings) -> dict[str, Any]:
    """Everything that decides the bytes, but the source's content."""
    recoding, columns = settings.recoding, source.columns
    options: dict[str, Any] = {
        "source": str(source.path.resolve()),
        "from": source.layout,
        "split": source.split,
        "image_column": columns.image,
        "label_column": columns.label,
        "root": None if columns.root is None else str(columns.root.resolve()),
        "seed": settings.seed,
        "shard_size": settings.shard_size,
        "short_side": recoding.short_side,
        "quality": None if recoding.short_side is None else recoding.quality,
        "check": recoding.check or recoding.short_side is not None,
        "skip_bad": settings.skip_bad,
    }
    encodes = recoding.short_side is not None or source.layout == "cifar"
    return {**options, "encoder": versions() if encodes else None}


@dataclass
class _Packing:
    source: Source
    folder: Path
    settings: Settings
    options: dict[str, Any]
    journal: record.Journal
    spool: Spool
    reporter: Reporter

    def run(self) -> Packed:
        self.reporter.say(f"Listing {self.source.path} ({self.source.layout})")
        listing = list_source(self.source, self.spool)
        fingerprint = listing.fingerprint(self._root(), self.spool)
        for note in listing.notes:
            self.reporter.say(note)
        shards = self._plan(listing)
        self._begin(fingerprint)
        done = self.journal.complete(shards)
        names = {written.entry.url for written in done}
        missing = [shard for shard in shards if shard.name not in names]
        if done:
            self.reporter.say(f"{len(done)} of {len(shards)} shards are complete: going on with the rest")
        self._check_space(missing)
        done += self._write(missing, sum(_size(shard) for shard in shards))
        done.sort(key=lambda written: written.entry.url)
        made = self._finish(listing, fingerprint, done)
        return Packed(made)

    def _root(self) -> Path:
        return self.source.path if self.source.path.is_dir() else self.source.path.parent

    def _plan(self, listing: Listing) -> list[Shard]:
        ordered = {name: plan.permuted(name, items, self.settings.seed) for name, items in listing.splits.items()}
        self.ratio = self._estimate(next(iter(ordered.values())))
        return [
            shard
            for name, items in ordered.items()
            for shard in plan.cut(name, items, self.settings.shard_size, self.ratio)
        ]

    def _estimate(self, items: list[Item]) -> float:
        """Stored bytes a byte of the source, by trying some: shards are to have the size that was asked for."""
        if self.settings.recoding.short_side is None:
            return 1.0
        from restrain.data.images import DecodeError

        before = after = 0
        with Files() as files:
            for part in [part for item in items[:TRIED] for part in item.parts if part.image]:
                data = files.read(part)
                try:
                    after += len(recoded(data, part.extension, self.settings.recoding).data)
                    before += len(data)
                except DecodeError:
                    continue  # told when its shard is written
        return round(after / before, 3) if before else 1.0

    def _begin(self, fingerprint: str) -> None:
        if self.journal.decided is None:
            self.journal.begin({"version": record.VERSION, "options": self.options, "listing": fingerprint})
        elif self.journal.decided["listing"] != fingerprint:
            raise UserError(
                f"{self.source.path} is not what it was when {self.folder} was begun: files were added, removed or "
                f"changed. Restore it, or name another folder."
            )

    def _check_space(self, missing: list[Shard]) -> None:
        need = sum(plan.stored_size(item, self.ratio) + 16 for shard in missing for item in shard.items)
        free = shutil.disk_usage(self.folder).free
        about = "about " if self.ratio != 1.0 else ""
        if need > free:
            raise WorldError(
                f"{self.folder} has {gigabytes(free)} free, {len(missing)} shard(s) need {about}{gigabytes(need)}. "
                f"Free some space, or name a folder on another disk."
            )
        self.reporter.say(f"Writing {len(missing)} shard(s), {about}{gigabytes(need)}; {gigabytes(free)} are free")

    def _write(self, missing: list[Shard], total: int) -> list[Written]:
        settings, made = self.settings, []
        done = total - sum(_size(shard) for shard in missing)
        jobs = [Job(self.folder, shard, settings.recoding, settings.skip_bad) for shard in missing]
        decodes = settings.recoding.check or settings.recoding.short_side is not None
        with _workers(min(settings.workers or default_workers(), len(jobs)), decodes) as pool:
            running = {pool.submit(write_shard, job): job for job in jobs}
            for future in as_completed(running):
                try:
                    written = future.result()
                except BrokenProcessPool as error:
                    raise WorldError(
                        "A process that encodes images was killed, for want of memory it may be. Run the same command "
                        "again, with fewer --workers."
                    ) from error
                self.journal.add(written)
                made.append(written)
                done += _size(running[future].shard)
                self.reporter.progress(done, total)
        return made

    def _finish(self, listing: Listing, fingerprint: str, done: list[Written]) -> dict[str, Any]:
        index.save([self.folder], "shards", [(written.entry, written.part) for written in done])
        record.write_classes(self.folder, listing.classes)
        splits: dict[str, dict[str, int]] = {}
        for written in done:
            split = splits.setdefault(written.entry.url.split("-")[0], dict.fromkeys(("shards", "samples", "bytes"), 0))
            split["shards"] += 1
            split["samples"] += written.entry.nsamples
            split["bytes"] += written.entry.size
        made = {
            "version": record.VERSION,
            "restrain": __version__,
            "options": self.options,
            "listing": fingerprint,
            "lossy": any(written.anew for written in done),
            "classes": None if listing.classes is None else len(listing.classes),
            "splits": splits,
            "bytes_read": sum(written.read for written in done),
            "encoded_anew": sum(written.anew for written in done),
            "skipped": [[w.entry.url, key, reason] for w in done for key, reason in w.skipped],
            "shards": [
                {"name": w.entry.url, "nsamples": w.entry.nsamples, "size": w.entry.size, "sha256": w.entry.sha256}
                for w in done
            ],
        }
        record.write_record(self.folder, made)
        self.journal.remove()
        return made


def _size(shard: Shard) -> int:
    return sum(part.size for item in shard.items for part in item.parts)


def gigabytes(size: int) -> str:
    """Bytes for a person, in powers of ten as disks are sold."""
    return next((f"{size / unit:.1f} {name}" for unit, name in ((10**9, "GB"), (10**6, "MB")) if size >= unit),
                f"{size / 1000:.1f} kB")  # fmt: skip


def default_workers() -> int:
    return min(MANY, len(os.sched_getaffinity(0)))


@contextmanager
def _workers(count: int, decodes: bool) -> Iterator[Executor]:
    """Threads where bytes are copied; processes where images are decoded. After an error nothing new is begun."""
    if decodes and count > 1:
        context = multiprocessing.get_context("spawn")
        pool: Executor = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
    else:
        pool = ThreadPoolExecutor(max(1, count))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a worker: leave when the parent was killed, whose end its queue does not tell; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
