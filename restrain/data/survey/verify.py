"""Whether a set is what its index says: every byte, and with ``decode`` every image and label."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from restrain.data import index, tars
from restrain.data.checksum import crc32
from restrain.data.images import DecodeError, decode
from restrain.data.index import Index
from restrain.data.indexing import Reporter
from restrain.data.sources import EXTENSIONS, ROTTEN, label_of

WHOLE = -1  # in place of a sample's number: the shard itself


@dataclass(frozen=True)
class Fault:
    """j: which of the shard's stored samples, or WHOLE."""

    shard: str
    j: int
    key: str
    why: str

    def __str__(self) -> str:
        return f"{self.shard}{'' if self.j == WHOLE else f', sample {self.j} ({self.key})'}: {self.why}"


@dataclass
class Verdict:
    """samples: looked at, those excluded left out. bytes: read."""

    samples: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)


def verify(root: Path, found: Index, *, decode: bool, workers: int, reporter: Reporter) -> Verdict:
    """Read every sample of a set. decode: also every image, by PIL, which minds cut ones, and every label."""
    check = _check_shard if found.kind == "shards" else _check_class
    verdict, total = Verdict(), int(found.entries.numbers["size"].sum())
    with ThreadPoolExecutor(workers) as pool:
        checked = pool.map(lambda i: check(root, found, i, decode), range(len(found.entries)))
        for entry, one in zip(found.entries, checked, strict=True):
            verdict.samples += one.samples
            verdict.bytes += entry.size
            verdict.faults += one.faults
            reporter.progress(verdict.bytes, total)
    return verdict


def exclude(root: Path, faults: Sequence[Fault], cache: str | None = None) -> Index:
    """Leave the faulty samples out of the set's index, where they are named with the reason. Gives the whole new index.

    Faults of whole shards are none of samples: those shards have to be restored.
    """
    found = next(one for place in index.places(root, cache) if (one := index.load(place)) is not None)
    new = [(fault.shard, fault.j, fault.why) for fault in faults if fault.j != WHOLE]
    table = (Path(found.place) / index.TABLE).read_bytes()
    changed = Index(found.kind, found.entries, found.table, found.place, sorted([*found.excluded, *new]))
    return index.write([found.place], changed, table)


def _check_shard(root: Path, found: Index, shard: int, full: bool) -> Verdict:
    entry, path = found.entries[shard], root / found.names[shard]
    digest, verdict = hashlib.sha256(), Verdict()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                why = f"it has {size} bytes and not {entry.size}: it was cut short or changed. Restore it"
                return Verdict(faults=[Fault(entry.url, WHOLE, "", why)])
            at = 0
            for j, first, last in found.stored_spans(shard):
                digest.update(file.read(first - at))
                data, at = file.read(last - first), last
                digest.update(data)
                if j in found.gone(shard):
                    continue
                verdict.samples += 1
                if crc32(data) != found.stored_crc(shard, j):
                    verdict.faults.append(Fault(entry.url, j, f"at byte {first}", ROTTEN))
                elif full:
                    verdict.faults += _look(entry.url, j, data)
            while rest := file.read(1 << 20):
                digest.update(rest)
    except OSError as error:
        return Verdict(faults=[Fault(entry.url, WHOLE, "", f"it cannot be read: {error.strerror}. Restore it")])
    if not verdict.faults and not found.gone(shard) and digest.hexdigest() != entry.sha256:
        why = "its samples are as they were indexed and what lies between them is not. Restore it"
        verdict.faults.append(Fault(entry.url, WHOLE, "", why))
    return verdict


def _look(shard: str, j: int, data: bytes) -> Iterator[Fault]:
    key, fields = tars.parse(data)
    image = next((fields[e] for e in EXTENSIONS if e in fields), None)
    if image is None:
        yield Fault(shard, j, key, f"no image among its files ({', '.join(fields)})")
        return
    try:
        label_of(fields)
        decode(image, "pil")
    except (DecodeError, ValueError) as error:
        yield Fault(shard, j, key, str(error))


def _check_class(root: Path, found: Index, shard: int, full: bool) -> Verdict:
    name, verdict = found.names[shard], Verdict()
    gone, n = found.gone(shard), found.entries[shard].nsamples
    for j in range(n):
        if j in gone:
            continue
        file = index.class_file(found.part(shard), n, j)
        verdict.samples += 1
        try:
            data = (root / name / file).read_bytes()
            why = "" if crc32(data) == found.stored_crc(shard, j) else ROTTEN
            if not why and full:
                decode(data, "pil")
        except OSError as error:
            why = f"it cannot be read: {error.strerror}"
        except DecodeError as error:
            why = str(error)
        if why:
            verdict.faults.append(Fault(name, j, f"{name}/{file}", why))
    return verdict
