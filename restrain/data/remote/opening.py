"""A remote set of shards: its index, fetched from beside them, and the store that reads them."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from restrain.data import index, manifest
from restrain.data.index import CHECKED_TABLE, TABLE, Index
from restrain.data.manifest import LINES, MANIFEST
from restrain.data.remote import urls
from restrain.data.remote.cache import Cache
from restrain.data.remote.fetching import Absent, Patience, Transport, fetch
from restrain.data.remote.http import HttpTransport
from restrain.data.remote.objects import ObjectTransport
from restrain.data.remote.store import MemorySink, RangeStore, RemoteStore
from restrain.errors import UserError, WorldError

RECENT = 256  # parts of a table that is fetched in parts
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def open_shards(
    data: Any, pattern: list[str], patience: Patience | None = None
) -> tuple[Index, RemoteStore | RangeStore]:
    """The index of the shards that a pattern (its braces written out) names, and their store.

    Raises UserError for a root that cannot be read or has no index, WorldError where the network or the cache fails.
    An index without a shard where nothing matches.
    """
    root, patience = urls.check(data.root), patience or Patience()
    transport = transport_of(root)
    folder = Path(data.cache) if data.cache else _own_cache()
    if data.index is not None:
        found = index.load(os.path.expanduser(data.index))
        if found is None or found.kind != "shards":
            raise UserError(f"data.index={data.index} holds no index of shards. Make it: restrain data index.")
    else:
        place = folder / "index" / hashlib.sha256(root.encode()).hexdigest()[:16]
        found = _fetch_index(root, place, transport, patience)
    names = []
    for one in pattern:
        matched = [name for name in fnmatch.filter(found.names, one) if name.count("/") == one.count("/")]
        if not matched and len(pattern) > 1:
            raise WorldError(f"{urls.redact(urls.join(root, one))} is missing: the index of the set does not list it.")
        names += matched
    chosen = found.select(sorted(set(names), key=os.fsencode))
    if data.mode == "range":
        return chosen, RangeStore(root, chosen.entries, transport, patience)
    cache = Cache(folder / "shards", parse_bytes(data.cache_bytes))
    cache.check_budget(max((entry.size for entry in chosen.entries), default=0))
    return chosen, RemoteStore(root, chosen.entries, cache, transport, patience)


def transport_of(root: str) -> Transport:
    """What reads objects below a URL. Raises UserError where a package for it is not installed."""
    scheme = root.partition("://")[0]
    return HttpTransport() if scheme in ("http", "https") else ObjectTransport(scheme)


def parse_bytes(text: str | None) -> int | None:
    """``200GB`` -> bytes; None stays None."""
    if text is None:
        return None
    number, unit = re.fullmatch(r"([0-9.]+)(MB|GB|TB)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * UNITS[unit])


def _fetch_index(root: str, place: Path, transport: Transport, patience: Patience) -> Index:
    try:
        name, text = _manifest(root, transport, patience)
        header = manifest.decode(text)[0]
        size = header["table_bytes"]
        large = size > CHECKED_TABLE
        table = None if large else _whole(urls.join(root, TABLE), transport, patience, size)
    except Absent as error:
        raise UserError(
            f"{urls.redact(root)} has no index: {error} Make one: restrain data index {urls.redact(root)} --to FOLDER. "
            f"Then put {MANIFEST} and {TABLE} beside the shards, or name the folder with data.index."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise WorldError(f"{urls.redact(urls.join(root, MANIFEST))} is no index. Make it again.") from None
    try:
        place.mkdir(parents=True, exist_ok=True)
        if table is not None:
            index.replace(place / TABLE, table)
        index.replace(place / name, text)
    except OSError as error:
        raise WorldError(f"The cache {place} cannot be written: {error.strerror}. Name another: data.cache.") from error
    lazily = (
        RangedTable(urls.join(root, TABLE), size, place / "parts" / f"{header['table_crc']:08x}", transport, patience)
        if large
        else None
    )
    found = index.load(place, lazily)
    if found is None or found.kind != "shards":
        raise WorldError(f"The index of {urls.redact(root)} is damaged, or of another version. Make it again.")
    return found


def _manifest(root: str, transport: Transport, patience: Patience) -> tuple[str, bytes]:
    """(name, bytes) of the manifest: the plain one, or that of many shards."""
    try:
        return MANIFEST, _whole(urls.join(root, MANIFEST), transport, patience)
    except Absent as plain:
        try:
            return LINES, _whole(urls.join(root, LINES), transport, patience)
        except Absent:
            raise plain from None


class RangedTable:
    """An index's table that is too large to fetch whole (8 bytes a sample): a shard's part when it is asked for."""

    def __init__(self, url: str, size: int, folder: Path, transport: Transport, patience: Patience):
        self._url, self._size, self._folder = url, size, folder
        self._transport, self._patience = transport, patience
        self._lock = threading.Lock()  # a part is fetched once, whoever asks for it
        self._part = lru_cache(RECENT)(self._fetched)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> np.ndarray:
        with self._lock:
            return self._part(part.start, part.stop)

    def _fetched(self, first: int, last: int) -> np.ndarray:
        kept = self._folder / f"{first}-{last}"
        if not (kept.is_file() and kept.stat().st_size == last - first):
            sink = MemorySink()
            fetch(self._transport, self._url, sink, self._patience, first=first, last=last, size=self._size)
            self._folder.mkdir(parents=True, exist_ok=True)
            index.replace(kept, bytes(sink.data))
        return np.fromfile(kept, np.uint8)


def _whole(url: str, transport: Transport, patience: Patience, size: int | None = None) -> bytes:
    sink = MemorySink()
    fetch(transport, url, sink, patience, size=size)
    return bytes(sink.data)


def _own_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restrain" / "remote"
