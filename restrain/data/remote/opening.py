"""A remote set of shards: its index, fetched from beside them, and the store that reads them."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from restrain.data import index
from restrain.data.index import CHECKED_TABLE, TABLE, Index
from restrain.data.manifest import MANIFEST
from restrain.data.remote import urls
from restrain.data.remote.cache import Cache
from restrain.data.remote.fetching import Absent, Patience, Transport, fetch
from restrain.data.remote.http import HttpTransport
from restrain.data.remote.objects import ObjectTransport
from restrain.data.remote.store import MemorySink, RangeStore, RemoteStore
from restrain.errors import UserError, WorldError

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
        manifest = _whole(urls.join(root, MANIFEST), transport, patience)
        size = json.loads(manifest)["table_bytes"]
        if size > CHECKED_TABLE:
            raise UserError(
                f"{urls.redact(root)} has an index table of {size} bytes, and remote ones are read up to "
                f"{CHECKED_TABLE}. Split the set into folders with an index each."
            )
        table = _whole(urls.join(root, TABLE), transport, patience, size)
    except Absent as error:
        raise UserError(
            f"{urls.redact(root)} has no index: {error} Where the shards lie in a folder, run: restrain data index "
            f"FOLDER, and put {MANIFEST} and {TABLE} beside the shards."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise WorldError(f"{urls.redact(urls.join(root, MANIFEST))} is no index. Make it again.") from None
    try:
        place.mkdir(parents=True, exist_ok=True)
        index.replace(place / TABLE, table)
        index.replace(place / MANIFEST, manifest)
    except OSError as error:
        raise WorldError(f"The cache {place} cannot be written: {error.strerror}. Name another: data.cache.") from error
    found = index.load(place)
    if found is None or found.kind != "shards":
        raise WorldError(f"The index of {urls.redact(root)} is damaged, or of another version. Make it again.")
    return found


def _whole(url: str, transport: Transport, patience: Patience, size: int | None = None) -> bytes:
    sink = MemorySink()
    fetch(transport, url, sink, patience, size=size)
    return bytes(sink.data)


def _own_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restrain" / "remote"
