"""Shards in object stores: a real S3 protocol behind faults, and any other file system through the same code."""

import hashlib
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest

from restrain.data import sets
from restrain.data.index import Entry
from restrain.data.remote import opening
from restrain.data.remote.cache import Cache
from restrain.data.remote.fetching import Patience, fetch
from restrain.data.remote.objects import ObjectTransport
from restrain.data.remote.store import MemorySink, RangeStore, RemoteStore
from restrain.errors import UserError, WorldError
from tests.data import s3
from tests.data.making import contents, section, train_loader, write_shards

QUICK = Patience(tries=8, deadline=30, stall_seconds=0.5, first_wait=0.01, longest_wait=0.02)
CALM = Patience(tries=8, deadline=30, stall_seconds=20, first_wait=0.01, longest_wait=0.02)
SIZE, CHUNK, ROOT = 300_000, 100_000, "s3://bucket/set"
NOISE = [np.random.Generator(np.random.PCG64(i)).bytes(SIZE) for i in range(3)]
DIGESTS = [hashlib.sha256(data).hexdigest() for data in NOISE]
ENTRIES = [Entry(f"{i}.tar", 1, SIZE, digest, 0, 0, 0) for i, digest in enumerate(DIGESTS)]
FAULTS = [["reset"], ["short"], [429, 503], [500, "reset", "short", 502], ["wrong length"]]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for i, data in enumerate(NOISE):
        (root / f"{i}.tar").write_bytes(data)
    with s3.faulty_s3() as server:
        server.put("bucket", root)
        yield server


@pytest.fixture
def server(shared_server, monkeypatch):
    for key, value in s3.environment(shared_server).items():
        monkeypatch.setenv(key, value)
    shared_server.faults, shared_server.retry_after = {}, None
    shared_server.gets.clear()
    return shared_server


def store(tmp_path, budget=None, patience=CALM, chunk=CHUNK):
    return RemoteStore(ROOT, ENTRIES, Cache(tmp_path / "cache", budget), ObjectTransport("s3", chunk=chunk), patience)


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_exact_bytes_through_faults(server, tmp_path, faults):
    reader = store(tmp_path)
    server.faults["1.tar"] = list(faults)
    assert reader.read(1, 0, SIZE) == NOISE[1]
    assert not server.faults["1.tar"]
    assert server.gets["1.tar"] == SIZE // CHUNK + len(faults)  # nobody but us tried again, and parts were kept
    reader.close()


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_ranges_alone(server, faults):
    reader = RangeStore(ROOT, ENTRIES, ObjectTransport("s3"), CALM)
    server.faults["2.tar"] = list(faults)
    assert reader.read(2, 1000, 5000) == NOISE[2][1000:6000]
    assert server.gets["2.tar"] == len(faults) + 1


def test_a_stalled_read_is_given_up(server, tmp_path):
    reader = store(tmp_path, patience=QUICK)
    reader.read(0, 0, 1)  # the first request loads botocore, which takes longer than this patience
    server.faults["1.tar"] = ["stall"]
    assert reader.read(1, 0, SIZE) == NOISE[1]
    reader.close()


def test_final_errors_hold_no_secret(server, tmp_path):
    reader = store(tmp_path)
    server.faults = {"0.tar": [403], "1.tar": [503] * 20}
    for shard, cause in ((0, "HTTP 403 AccessDenied"), (1, r"HTTP 503 SlowDown \(8 tries")):
        with pytest.raises(WorldError, match=rf"s3://bucket/set/{shard}.tar cannot be read: {cause}") as caught:
            reader.read(shard, 0, 10)
        assert not any(word in str(caught.value) for word in ("canary", s3.KEY, "Signature"))
        assert caught.value.__cause__ is None
    assert (server.gets["0.tar"], server.gets["1.tar"]) == (1, 8)
    with pytest.raises(WorldError, match=r"s3://bucket/set/no.tar cannot be read: .*(404|no such object)"):
        fetch(ObjectTransport("s3"), f"{ROOT}/no.tar", MemorySink(), CALM)


def test_retry_after_is_kept_but_not_beyond_the_deadline(server, tmp_path):
    reader = store(tmp_path)
    server.faults["0.tar"], server.retry_after = [429], "600"
    with pytest.raises(WorldError, match=r"HTTP 429 TooManyRequests \(1 tries"):
        reader.read(0, 0, 10)


def _read(cache, results):
    reader = RemoteStore(ROOT, ENTRIES, Cache(cache), ObjectTransport("s3", chunk=CHUNK), CALM)
    results.put([hashlib.sha256(reader.read(i, 0, SIZE)).hexdigest() for i in range(3)])


def test_two_processes_download_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_read, args=(tmp_path / "cache", results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [DIGESTS] * 2
    for process in processes:
        process.join()
    assert dict(server.gets) == {f"{i}.tar": SIZE // CHUNK for i in range(3)}


def test_a_process_killed_while_it_downloads(server, tmp_path):
    server.faults["0.tar"] = [None, "stall"]
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_read, args=(tmp_path / "cache", context.Queue()))
    process.start()
    while not (parts := list((tmp_path / "cache").glob("*.part"))) or not parts[0].stat().st_size:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list((tmp_path / "cache").glob("*.tar"))
    reader = store(tmp_path)
    assert reader.read(0, 0, SIZE) == NOISE[0]
    assert not list((tmp_path / "cache").glob("*.part"))
    reader.close()


def test_eviction_and_a_full_cache(server, tmp_path):
    reader, other = store(tmp_path, 2 * SIZE), Cache(tmp_path / "cache", 2 * SIZE)
    held = []
    for i in (0, 1):  # by another process
        fill = lambda sink, i=i: fetch(ObjectTransport("s3", chunk=CHUNK), f"{ROOT}/{i}.tar", sink, CALM)  # noqa: E731
        held.append(other.acquire(f"{i}.tar", DIGESTS[i], SIZE, fill))
    with pytest.raises(WorldError, match=r"is full: data.cache_bytes=600000"):
        reader.read(2, 0, 1)
    assert reader.read(1, 0, SIZE) == NOISE[1]
    for descriptor in held:
        os.close(descriptor)
    for shard in (2, 0, 1, 2):
        assert reader.read(shard, 0, SIZE) == NOISE[shard]
    reader.close()


def test_batches_of_three_epochs_are_those_from_disk(server, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "Patience", lambda: CALM)
    root = write_shards(tmp_path / "set", 3, 8)
    local = sets.open_source(section("webdataset", root), "train", classes=5)
    server.put("photographs", root)
    for name in (*local.names, "restrain-index.json", "restrain-index.bin"):
        server.faults[name] = ["reset", "short", 503]
    data = section("webdataset", "s3://photographs/set", cache=str(tmp_path / "cache"), mode="shards", cache_bytes=None)
    remote = sets.open_source(data, "train", classes=5)
    assert remote.fingerprint == local.fingerprint
    expected, found = (contents(train_loader(source, stop=9)) for source in (local, remote))
    assert found == expected
    assert not any(server.faults.values())
    remote.close()


def test_any_file_system_of_fsspec_reads_alike():
    """gs has no server here: its transport is this code over another file system."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/objects/a.tar", NOISE[0])
    transport = ObjectTransport("gs", make=lambda: fs, chunk=CHUNK)
    sink = MemorySink()
    fetch(transport, "memory://objects/a.tar", sink, CALM, size=SIZE)
    assert bytes(sink.data) == NOISE[0]
    with pytest.raises(WorldError, match="there is no such object"):
        fetch(transport, "memory://objects/b.tar", MemorySink(), CALM)


def test_a_changed_object_is_not_mixed():
    class Store:
        version, reads = 0, 0

        def invalidate_cache(self):
            pass

        def info(self, url):
            return {"size": SIZE, "ETag": str(self.version), "type": "file"}

        def cat_file(self, url, start, end):
            self.reads += 1
            if self.reads == 2:
                self.version = 1
            return NOISE[self.version][start:end]

    sink = MemorySink()
    fetch(ObjectTransport("gs", make=Store, chunk=CHUNK), "gs://b/a.tar", sink, CALM)
    assert bytes(sink.data) == NOISE[1]


def test_a_missing_library_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"pip install 'restrain\[gcs\]'"):
        fetch(ObjectTransport("gs"), "gs://b/a.tar", MemorySink(), CALM)
