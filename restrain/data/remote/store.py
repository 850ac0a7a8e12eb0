"""Remote shards as a `Store`: whole shards through the node's cache, or ranges alone."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence

from restrain.data.index import Entry
from restrain.data.remote import urls
from restrain.data.remote.cache import Cache
from restrain.data.remote.fetching import Patience, Transport, fetch
from restrain.errors import WorldError


class RemoteStore:
    """Shards below a URL, each fetched whole into the cache when first read; the ``keep`` last used stay open."""

    def __init__(
        self,
        root: str,
        entries: Sequence[Entry],
        cache: Cache,
        transport: Transport,
        patience: Patience | None = None,
        keep: int = 64,
    ):
        self.root, self.entries, self.cache, self.keep = root, entries, cache, keep
        self._transport, self._patience = transport, patience or Patience()
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, length: int) -> bytes:
        file = self._use(shard)
        try:
            with file.lock:  # one thread fetches, the others of this shard wait for it
                if file.descriptor is None:
                    file.descriptor = self._acquire(shard)
            data = os.pread(file.descriptor, length, offset)
        except OSError as error:
            raise WorldError(f"The cache {self.cache.folder} cannot be read: {error.strerror}.") from error
        finally:
            with self._lock:
                file.users -= 1
        if len(data) != length:
            raise WorldError(f"{self._name(shard)} ended {length - len(data)} bytes early in {self.cache.folder}.")
        return data

    def close(self) -> None:
        with self._lock:
            for file in self._open.values():
                file.close()
            self._open.clear()

    def _use(self, shard: int) -> _Shard:
        with self._lock:
            file = self._open.setdefault(shard, _Shard())
            self._open.move_to_end(shard)
            file.users += 1
            self._close_idle(self.keep)
        return file

    def _close_idle(self, keep: int) -> None:
        """Close shards that no thread reads, the longest unused first, down to ``keep``. Under the lock."""
        idle = [shard for shard, file in self._open.items() if file.users == 0]
        for shard in idle[: max(0, len(self._open) - keep)]:
            self._open.pop(shard).close()

    def _acquire(self, shard: int) -> int:
        entry, budget = self.entries[shard], self.cache.budget
        if budget is not None:
            with self._lock:  # what this process holds open without need must not fill the cache
                while self._held() + entry.size > budget and any(f.users == 0 for f in self._open.values()):
                    self._close_idle(len(self._open) - 1)
        url = urls.join(self.root, entry.url)
        return self.cache.acquire(
            self._name(shard),
            entry.sha256,
            entry.size,
            lambda sink: fetch(self._transport, url, sink, self._patience, size=entry.size),
        )

    def _held(self) -> int:
        return sum(self.entries[shard].size for shard, file in self._open.items() if file.descriptor is not None)

    def _name(self, shard: int) -> str:
        return urls.redact(urls.join(self.root, self.entries[shard].url))


class RangeStore:
    """Shards below a URL, of which only what is asked for is fetched: for small evaluations and sparse reads."""

    def __init__(self, root: str, entries: Sequence[Entry], transport: Transport, patience: Patience | None = None):
        self.root, self.entries = root, entries
        self._transport, self._patience = transport, patience or Patience()

    def read(self, shard: int, offset: int, length: int) -> bytes:
        entry, sink = self.entries[shard], MemorySink()
        url, end = urls.join(self.root, entry.url), offset + length
        fetch(self._transport, url, sink, self._patience, first=offset, last=end, size=entry.size)
        return bytes(sink.data)

    def close(self) -> None:
        self._transport.close()


class MemorySink:
    """What a fetch wrote, in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data

    def restart(self) -> None:
        self.data.clear()


class _Shard:
    def __init__(self) -> None:
        self.descriptor: int | None = None
        self.users = 0
        self.lock = threading.Lock()

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
