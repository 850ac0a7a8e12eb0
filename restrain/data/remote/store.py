"""Remote shards as a `Store`: whole shards through the node's cache, or ranges alone."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence

from restrain.data.index import Entry
from restrain.data.remote import urls
from restrain.data.remote.cache import Cache
from restrain.data.remote.fetching import Patience, Transport, fetch
from restrain.errors import RestrainError, WorldError

FETCHERS = 4  # downloads side by side, before anybody waits for them
KEPT = 256  # shards that are kept open at most because they are expected
_lock = threading.RLock()  # of what all stores of this process hold open
_stores: weakref.WeakSet[RemoteStore] = weakref.WeakSet()


class RemoteStore:
    """Shards below a URL, each fetched whole into the cache: those expected before they are read, others when they are.

    Shards in use and those expected stay open, so that no process takes them from the cache. Without a budget the
    ``keep`` last used do too; with one they are let go, for other stores and processes hold to the same budget.
    """

    def __init__(
        self,
        root: str,
        entries: Sequence[Entry],
        cache: Cache,
        transport: Transport,
        patience: Patience | None = None,
        keep: int = 64,
    ):
        self.root, self.entries, self.cache = root, entries, cache
        self.keep = keep if cache.budget is None else 0
        self._transport, self._patience = transport, patience or Patience()
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._ahead = _Ahead(self)
        _stores.add(self)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        with _lock:
            file = self._open.setdefault(shard, _Shard())
            self._open.move_to_end(shard)
            file.users += 1
        try:
            data = os.pread(self._descriptor(shard, file, ahead=False), length, offset)
        except OSError as error:
            raise WorldError(f"The cache {self.cache.folder} cannot be read: {error.strerror}.") from error
        finally:
            with _lock:
                file.users -= 1
                self._close_idle(len(self._open) - self.keep)
        if len(data) != length:
            raise WorldError(f"{self._name(shard)} ended {length - len(data)} bytes early in {self.cache.folder}.")
        return data

    def expect(self, shards: Sequence[int]) -> None:
        """Fetch these shards in this order, as far as the cache has room, and let go of those expected before."""
        past = self._ahead.expect(shards)
        with _lock:
            for shard in past:
                if (file := self._open.get(shard)) is not None and file.users == 0:
                    self._open.pop(shard).close()
        for shard in past:
            self.cache.retire(self.entries[shard].sha256)

    def check_room(self, shards: Sequence[int]) -> None:
        """Raises UserError where these shards, all needed at a time, do not fit into the cache."""
        self.cache.check_budget(sum(self.entries[shard].size for shard in shards))

    def close(self) -> None:
        self._ahead.close()
        with _lock:
            for file in self._open.values():
                file.close()
            self._open.clear()

    def prefetch(self, shard: int) -> bool:
        """Bring a shard into the cache. False where there is no room for it, or no way to it: reading it will say."""
        with _lock:
            file = self._open.setdefault(shard, _Shard())
            file.users += 1
        try:
            return self._descriptor(shard, file, ahead=True) >= 0
        except (RestrainError, OSError):
            return False
        finally:
            with _lock:
                file.users -= 1
                if self._open.get(shard) is not file:  # closed meanwhile
                    file.close()
                elif file.descriptor is None and file.users == 0:
                    del self._open[shard]

    def _descriptor(self, shard: int, file: _Shard, ahead: bool) -> int:
        """The shard's descriptor; -1 where it was to be fetched ahead and there is no room."""
        waited = file.lock.locked()
        with file.lock:  # one thread fetches, the others of this shard wait for it
            if file.descriptor is not None:
                return file.descriptor
            if waited and file.error is not None:  # who waited for a failure does not begin it again
                raise WorldError(str(file.error))
            if not self._reserve(shard, file, ahead):
                return -1
            try:
                file.error, file.descriptor = None, self._acquire(shard)
                return file.descriptor
            except WorldError as error:
                file.error = error
                raise
            finally:
                file.coming = False

    def _reserve(self, shard: int, file: _Shard, ahead: bool) -> bool:
        """Count the shard as held, once this process holds little enough beside it: what is idle is closed for it, of
        all stores that share the cache. Fetching ahead closes nothing that is expected: False is its answer then."""
        size, budget = self.entries[shard].size, self.cache.budget
        with _lock:
            sharing = [store for store in _stores if store.cache.folder == self.cache.folder]
            while budget is not None and sum(store.held() for store in sharing) + size > budget:
                if any(store._close_idle(1) for store in sharing):
                    continue
                if ahead:
                    return False
                if not any(store._close_idle(1, expected=True) for store in sharing):
                    break  # the cache will say that it is full
            file.coming = True
        return True

    def held(self) -> int:
        """Bytes of the shards that are open, or on their way."""
        return sum(self.entries[shard].size for shard, file in self._open.items() if file.there)

    def _close_idle(self, most: int, expected: bool = False) -> int:
        """Close up to ``most`` shards that no thread reads, the longest unused first. Under the lock; gives how many.
        expected: also those that are expected."""
        kept = set() if expected else self._ahead.kept()
        idle = [shard for shard, file in self._open.items() if file.users == 0 and shard not in kept][: max(0, most)]
        for shard in idle:
            self._open.pop(shard).close()
        return len(idle)

    def _acquire(self, shard: int) -> int:
        entry = self.entries[shard]
        url = urls.join(self.root, entry.url)
        return self.cache.acquire(
            self._name(shard),
            entry.sha256,
            entry.size,
            lambda sink: fetch(self._transport, url, sink, self._patience, size=entry.size),
        )

    def _name(self, shard: int) -> str:
        return urls.redact(urls.join(self.root, self.entries[shard].url))


class _Ahead:
    """Threads that fetch what is expected, in its order, until there is something else to expect."""

    def __init__(self, store: RemoteStore):
        self._store = store
        self._wanted: list[int] = []
        self._todo: list[int] = []
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closing = False

    def expect(self, shards: Sequence[int]) -> list[int]:
        """Gives what is expected no more."""
        with self._changed:
            if list(shards) == self._wanted:
                return []
            now = set(shards)
            past = [shard for shard in self._wanted if shard not in now]
            self._wanted, self._todo = list(shards), list(shards)[::-1]
            self._changed.notify_all()
            if not self._threads and not self._closing:
                self._threads = [
                    threading.Thread(target=self._work, name=f"restrain-fetch-{i}", daemon=True)
                    for i in range(FETCHERS)
                ]
                for thread in self._threads:
                    thread.start()
        return past

    def kept(self) -> set[int]:
        return set(self._wanted[:KEPT])

    def close(self) -> None:
        """A download under way is left to end by itself, with its process or before."""
        with self._changed:
            self._closing = True
            self._todo = []
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._todo or self._closing)
                if self._closing:
                    return
                shard = self._todo.pop()
            if not self._store.prefetch(shard):
                with self._changed:
                    self._todo = []  # no room for more, or no way to it: until something else is expected


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
        self.coming = False  # on its way
        self.error: WorldError | None = None  # of the last try
        self.lock = threading.Lock()

    @property
    def there(self) -> bool:
        return self.coming or self.descriptor is not None

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)
