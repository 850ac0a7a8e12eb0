"""Making the index of a data set and keeping it in step with the files. No torch here."""

from __future__ import annotations

import fnmatch
import glob
import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from restrain.data import index, tars
from restrain.data.checksum import crc32
from restrain.data.index import Entry, Index
from restrain.errors import UserError, WorldError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
MOST = 1_000_000  # files that one pattern may list
MANY = 8  # threads that index, at most: reading is the bound


@dataclass
class Reporter:
    """How indexing tells a person what it does. progress: (bytes done, bytes in all)."""

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int], None] = lambda done, total: None


def match_shards(root: str | Path, pattern: str) -> list[str]:
    """Names below ``root`` that match ``* ? []`` and ``{000..146}``, in byte order.

    Raises UserError for a folder that does not exist or a pattern that cannot be, WorldError where a shard that ``{}``
    lists is missing.
    """
    _listdir(root)
    if os.path.isabs(pattern) or ".." in Path(pattern).parts:
        raise UserError(f"The pattern {pattern!r} leaves {root}. Name shards below that folder, or another data.root.")
    found: set[str] = set()
    for one in expand(pattern):
        matched = glob.glob(one, root_dir=root)
        if not matched and one != pattern:
            raise WorldError(
                f"{Path(root) / one} is missing: {pattern!r} lists it. Restore it, or correct the pattern."
            )
        found.update(matched)
    return sorted(found, key=os.fsencode)


def index_shards(
    root: str | Path,
    names: Sequence[str],
    *,
    cache: str | None = None,
    refresh: bool = False,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Index:
    """The index of these shards of ``root``: the one found, completed by shards that it lacks, or a new one.

    Without ``refresh`` a shard whose size is not the indexed one is a WorldError (cut short, or changed); with it,
    shards of another size or time are indexed again. Shards of the index that are not in ``names`` are kept if their
    files are there.
    """
    reporter = reporter or Reporter()
    root, where = Path(root), index.places(root, cache)
    stats = {name: _shard_stat(root / name) for name in names}
    found = [old for place in where if (old := index.load(place)) is not None and old.kind == "shards"]
    for old in found:
        known = {entry.url: entry for entry in old.entries}
        if not refresh and all(n in known and known[n].size == stats[n].st_size for n in names):
            return old.select(names)
    kept: dict[str, tuple[Entry, bytes]] = {}
    stale: dict[str, Entry] = {}
    excluded: list[index.Excluded] = []
    for old in found:
        before = set(kept)
        for i, entry in enumerate(old.entries):
            status = stats.get(entry.url) or _stat(root / entry.url)
            if status is None or entry.url in kept:
                continue
            if entry.size == status.st_size and (not refresh or entry.mtime == status.st_mtime_ns):
                kept[entry.url] = (entry, old.part(i).tobytes())
            else:
                stale[entry.url] = entry
        excluded += [one for one in old.excluded if one[0] in kept and one[0] not in before]
    for name in [] if refresh else [name for name in names if name in stale and name not in kept]:
        raise WorldError(
            f"{root / name} has {stats[name].st_size} bytes, its index says {stale[name].size}: it was cut short or "
            f"changed. Restore it from its origin, or, if it was changed on purpose, run: restrain data index {root}"
        )
    missing = [name for name in names if name not in kept]
    if missing:
        reporter.say(f"Indexing {len(missing)} shard(s) of {root}")
        kept.update(_scan_shards(root, missing, stats, workers, reporter))
    _say_dropped(found, excluded, reporter)
    made = index.save(where, "shards", [kept[name] for name in sorted(kept)], excluded)
    reporter.say(f"The index is in {made.place}: {len(made.names)} shards, {int(made.counts.sum())} samples")
    return made.select(names)


def check_none_missing(root: str | Path, pattern: str, names: Sequence[str], cache: str | None = None) -> None:
    """WorldError where an index lists shards of the pattern that are not there: the set would shrink silently."""
    for place in index.places(root, cache):
        old = index.load(place)
        listed = [] if old is None else [name for one in expand(pattern) for name in old.names if matches(name, one)]
        if gone := sorted(set(listed) - set(names)):
            raise WorldError(
                f"{Path(root) / gone[0]} is missing{f' (and {len(gone) - 1} more)' if gone[1:] else ''}: the index in "
                f"{place} lists it. Restore it, or, if it was removed on purpose, run: restrain data index {root}"
            )


def index_folder(
    root: str | Path,
    *,
    cache: str | None = None,
    refresh: bool = False,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Index:
    """The index of ``root/class/**/image``, a class a folder, classes and files in byte order.

    Files that the index lacks are added and those that are gone dropped, said aloud; with ``refresh`` files of another
    size or time are read again. Raises UserError for a folder without classes or a class without images.
    """
    reporter = reporter or Reporter()
    root, where = Path(root), index.places(root, cache)
    files = list_classes(root)
    old = next((one for place in where if (one := index.load(place)) and one.kind == "folder"), None)
    tables = {} if old is None else {name: _class_files(old, i) for i, name in enumerate(old.names)}
    if old is not None and not refresh and {name: list(table) for name, table in tables.items()} == files:
        return old
    reporter.say(f"Indexing {sum(map(len, files.values()))} images of {root}")
    jobs = [(root / name, names, tables.get(name, {}), refresh) for name, names in files.items()]
    done = 0
    parts = []
    with ThreadPoolExecutor(workers or _workers()) as pool:
        for entry, part in pool.map(lambda job: _scan_class(*job), jobs):
            parts.append((entry, part))
            done += entry.nsamples
            reporter.progress(done, sum(map(len, files.values())))
    excluded = [] if old is None else _still_excluded(old, parts)
    _say_dropped([old] if old else [], excluded, reporter)
    made = index.save(where, "folder", parts, excluded)
    reporter.say(f"The index is in {made.place}: {len(made.names)} classes, {int(made.counts.sum())} images")
    return made


def list_classes(root: str | Path) -> dict[str, list[str]]:
    """Class -> its image files (relative to the class folder), both in byte order. Hidden names are skipped."""
    classes = sorted((n for n in _listdir(root) if n[0] != "." and (Path(root) / n).is_dir()), key=os.fsencode)
    if not classes:
        raise UserError(
            f"{root} has no class folders. A folder set is FOLDER/class/image.jpg, one folder a class; for tar shards "
            f"use data.name=webdataset."
        )
    files = {name: _images_below(Path(root) / name) for name in classes}
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise UserError(
            f"{Path(root) / empty[0]} holds no images ({', '.join(IMAGES)}), so its class would have none"
            f"{f'; nor do {len(empty) - 1} other class folders' if empty[1:] else ''}. Add images or remove the folder."
        )
    return files


def _scan_shards(
    root: Path, names: Sequence[str], stats: dict, workers: int | None, reporter: Reporter
) -> dict[str, tuple[Entry, bytes]]:
    total, done = sum(stats[name].st_size for name in names), 0
    out = {}
    with ThreadPoolExecutor(workers or _workers()) as pool:
        for name, found in zip(names, pool.map(lambda name: tars.scan(str(root / name)), names), strict=True):
            entry = Entry(name, len(found.crcs), found.size, found.sha256, found.mtime, 0, 0)
            out[name] = (entry, index.shard_part(found.offsets, found.crcs))
            done += found.size
            reporter.progress(done, total)
    return out


def _class_files(old: Index, shard: int) -> dict[str, tuple[int, int, int]]:
    """File -> (size, mtime, crc) of a class in an index."""
    return _rows_of(old.part(shard), old.entries[shard].nsamples)


def _rows_of(part: np.ndarray, n: int) -> dict[str, tuple[int, int, int]]:
    files = (index.class_file(part, n, j) for j in range(n))
    return dict(zip(files, index.class_rows(part, n), strict=True))


def _scan_class(path: Path, files: list[str], known: dict, refresh: bool) -> tuple[Entry, bytes]:
    rows = []
    for file in files:
        row = known.get(file)
        if row is not None and refresh:
            status = os.stat(path / file)
            row = row if row[:2] == (status.st_size, status.st_mtime_ns) else None
        if row is None:
            row = _scan_image(path / file)
        rows.append(row)
    sizes, mtimes, crcs = zip(*rows, strict=True)
    part = index.class_part(files, sizes, mtimes, crcs)
    content = sha256(part[8 * len(files) :]).hexdigest()  # sizes, CRCs and names: times are no content
    return Entry(path.name, len(files), sum(sizes), content, 0, 0, 0), part


def _still_excluded(old: Index, parts: Sequence[tuple[Entry, bytes]]) -> list[index.Excluded]:
    """What a folder set excludes, by the new numbers of files that are as they were."""
    kept, number = [], {n: i for i, n in enumerate(old.names)}
    new = {entry.url: (np.frombuffer(part, np.uint8), entry.nsamples) for entry, part in parts}
    for name, j, why in old.excluded:
        file, row = list(_class_files(old, number[name]).items())[j]
        now = _rows_of(*new[name]) if name in new else {}
        if now.get(file) == row:
            kept.append((name, list(now).index(file), why))
    return kept


def _say_dropped(found: Sequence[Index], excluded: Sequence[index.Excluded], reporter: Reporter) -> None:
    before = sum(len(old.excluded) for old in found[:1])
    if before > len(excluded):
        reporter.say(
            f"{before - len(excluded)} sample(s) that were excluded are of data that changed, and are in the set again"
        )
    if excluded:
        reporter.say(f"{len(excluded)} sample(s) stay excluded")


def _scan_image(path: Path) -> tuple[int, int, int]:
    """(size, mtime in ns, CRC-32) of a file. Raises WorldError where it is none, or cannot be read."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise WorldError(f"{path} is named like an image and is no file. Move it away.")
        data = path.read_bytes()
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}. Restore it, or move it away.") from error
    return len(data), status.st_mtime_ns, crc32(data)


def _images_below(folder: Path) -> list[str]:
    found = []
    for path, folders, files in os.walk(folder, followlinks=True):
        # A link to a folder above would count the same images again, as this class.
        real = os.path.realpath(path) + os.sep
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and not real.startswith(os.path.realpath(os.path.join(path, name)) + os.sep)
        ]
        below = os.path.relpath(path, folder)
        images = [name for name in files if name.lower().endswith(IMAGES) and name[0] != "."]
        found += images if below == "." else [f"{below}/{name}" for name in images]
    return sorted(found, key=os.fsencode)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _shard_stat(path: Path) -> os.stat_result:
    try:
        status = os.stat(path)
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}. Restore it from its origin.") from error
    if not stat.S_ISREG(status.st_mode):
        raise WorldError(f"{path} is no file, and shards are. Move it away, or correct the pattern.")
    return status


def matches(name: str, pattern: str) -> bool:
    """Whether a shard's name is of a pattern without braces; ``*`` does not go into folders."""
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def expand(pattern: str) -> list[str]:
    """The patterns that one with ``{}`` stands for. Raises UserError for odd braces and for more than MOST of them."""
    if "{" not in pattern:
        return [pattern]
    from braceexpand import braceexpand

    spans = [abs(int(a) - int(b)) + 1 for a, b in re.findall(r"(\d{1,18})\.\.(\d{1,18})", pattern)]
    if math.prod(spans) > MOST:  # asked first: a range is written out in memory
        raise UserError(f"The pattern {pattern!r} lists more than {MOST:,} files. Use * where all of them are meant.")
    try:
        return list(braceexpand(pattern))
    except ValueError:  # unbalanced
        raise UserError(f"The pattern {pattern!r} has a brace without its other half.") from None


def _listdir(root: str | Path) -> list[str]:
    try:
        return os.listdir(root)
    except FileNotFoundError as error:
        raise UserError(f"{root} does not exist. Name the folder of the data set (data.root in a recipe).") from error
    except NotADirectoryError as error:
        raise UserError(f"{root} is a file. Name the folder of the data set (data.root in a recipe).") from error
    except OSError as error:
        raise WorldError(f"{root} cannot be read: {error.strerror}.") from error


def _workers() -> int:
    return min(MANY, len(os.sched_getaffinity(0)))
