"""Remote shards: exact bytes or a named error, whatever the network does."""

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from restrain.data import index, sets
from restrain.data.index import Entry, Index
from restrain.data.remote import opening, urls
from restrain.data.remote.cache import Cache
from restrain.data.remote.fetching import Patience, fetch
from restrain.data.remote.http import HttpTransport
from restrain.data.remote.store import MemorySink, RangeStore, RemoteStore
from restrain.errors import UserError, WorldError
from tests.data.faulty import FaultyServer
from tests.data.making import contents, section, train_loader, write_shards

QUICK = Patience(tries=8, deadline=20, stall_seconds=0.2, first_wait=0.01, longest_wait=0.02)
SIZE = 300_000


def noise(number: int, size: int = SIZE) -> bytes:
    return np.random.Generator(np.random.PCG64(number)).bytes(size)


def entries(root: Path, shards: int = 3) -> list[Entry]:
    for i in range(shards):
        (root / f"{i}.tar").write_bytes(noise(i))
    return [Entry(f"{i}.tar", 1, SIZE, hashlib.sha256(noise(i)).hexdigest(), 0, 0, 0) for i in range(shards)]


@pytest.fixture
def server(tmp_path):
    (tmp_path / "set").mkdir()
    server = FaultyServer(tmp_path / "set")
    yield server
    server.shutdown()
    server.server_close()


def store(server, tmp_path, shards=3, budget=None, **fields):
    found = entries(server.root, shards)
    return RemoteStore(server.url, found, Cache(tmp_path / "cache", budget), HttpTransport(), QUICK, **fields)


FAULTS = [["reset"], ["short"], ["stall"], [429, 503], [500, "reset", "stall", "short", 502, "reset"], ["wrong length"]]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_exact_bytes_through_faults(server, tmp_path, faults, ranges):
    reader = store(server, tmp_path)
    server.ranges = ranges
    server.faults["1.tar"] = list(faults)
    assert reader.read(1, 1000, 5000) == noise(1)[1000:6000]
    assert not server.faults["1.tar"]
    assert reader.read(1, 0, SIZE) == noise(1)
    assert server.gets["1.tar"] == len(faults) + 1
    reader.close()


def test_an_interrupted_transfer_goes_on_where_it_was(server, tmp_path):
    reader = store(server, tmp_path)
    server.faults["0.tar"] = ["short", "short"]
    assert reader.read(0, 0, SIZE) == noise(0)
    assert server.bytes["0.tar"] == SIZE
    reader.close()


def test_content_that_changes_between_ranges(server, tmp_path):
    reader = store(server, tmp_path)
    old = noise(9)
    (server.root / "0.tar").write_bytes(old)  # then it is put right, in the middle of the first transfer
    (server.root / "0.new").write_bytes(noise(0))
    server.faults["0.tar"] = ["changed"]
    assert reader.read(0, 0, SIZE) == noise(0)
    reader.close()
    (server.root / "1.tar").write_bytes(old)
    with pytest.raises(WorldError, match=r"1\.tar is not what its index says"):
        reader.read(1, 0, 10)
    assert sorted(path.name for path in (tmp_path / "cache").glob("*.part")) == []


def test_final_errors(server, tmp_path):
    reader = store(server, tmp_path)
    reader.root = server.url.replace("http://", "http://me:secret@") + "/?signature=secret"
    server.faults = {"0.tar": [403], "1.tar": [503] * 20, "2.tar": ["stall"] * 20}
    for name, cause in (("0.tar", "HTTP 403"), ("1.tar", r"HTTP 503 \(8 tries"), ("2.tar", "stalled")):
        with pytest.raises(WorldError, match=rf"http://127.0.0.1:\d+/{name} cannot be read: {cause}") as caught:
            reader.read(int(name[0]), 0, 10)
        assert "secret" not in str(caught.value)
    assert (server.gets["0.tar"], server.gets["1.tar"]) == (1, 8)
    (server.root / "0.tar").write_bytes(b"short")
    with pytest.raises(WorldError, match="the object has 5 bytes, 300000 are expected"):
        reader.read(0, 0, 10)
    server.shutdown()
    server.server_close()
    with pytest.raises(WorldError, match="no connection"):
        reader.read(0, 0, 10)


def test_retry_after_and_the_deadline(server, tmp_path):
    reader = store(server, tmp_path)
    server.faults["0.tar"], server.retry_after = [429], "1"
    began = time.monotonic()
    reader.read(0, 0, 10)
    assert time.monotonic() - began >= 1
    server.faults["1.tar"], server.retry_after = [429], "600"
    began = time.monotonic()
    with pytest.raises(WorldError, match="HTTP 429"):
        reader.read(1, 0, 10)
    assert time.monotonic() - began < 1  # longer than the deadline: said at once
    reader.close()


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_ranges_alone(server, faults):
    reader = RangeStore(server.url, entries(server.root), HttpTransport(), QUICK)
    server.faults["2.tar"] = list(faults)
    assert reader.read(2, 1000, 5000) == noise(2)[1000:6000]
    assert server.bytes["2.tar"] <= 5000
    server.ranges = False
    assert reader.read(2, 1000, 5000) == noise(2)[1000:6000]
    reader.close()


def test_slow_transfers_stall(server):
    class Drip:
        def get(self, url, first, last, tag, timeout):
            from restrain.data.remote.fetching import Answer

            return Answer(first, 1000, None, (time.sleep(0.02) or b"x" for _ in range(1000)))

    patience = Patience(tries=2, deadline=5, stall_seconds=0.1, first_wait=0.01)
    with pytest.raises(WorldError, match=r"stalled: \d+ bytes in 0 s \(2 tries"):
        fetch(Drip(), "http://host/a", MemorySink(), patience)


def _read(url, cache, shards, results):
    with_entries = [Entry(f"{i}.tar", 1, SIZE, digest, 0, 0, 0) for i, digest in enumerate(shards)]
    reader = RemoteStore(url, with_entries, Cache(cache), HttpTransport(), QUICK)
    results.put([hashlib.sha256(reader.read(i, 0, SIZE)).hexdigest() for i in range(len(shards))])


def test_two_processes_download_once(server, tmp_path):
    digests = [entry.sha256 for entry in entries(server.root)]
    server.delay = 0.1
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    args = (server.url, tmp_path / "cache", digests, results)
    processes = [context.Process(target=_read, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=20) for _ in processes] == [digests] * 2
    for process in processes:
        process.join()
    assert dict(server.gets) == {"0.tar": 1, "1.tar": 1, "2.tar": 1}


def test_a_process_killed_while_it_downloads(server, tmp_path):
    digests = [entry.sha256 for entry in entries(server.root)]
    server.faults["0.tar"] = ["stall"]
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_read, args=(server.url, tmp_path / "cache", digests, context.Queue()))
    process.start()
    while not (parts := list((tmp_path / "cache").glob("*.part"))) or not parts[0].stat().st_size:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list((tmp_path / "cache").glob("*.tar"))
    reader = store(server, tmp_path)
    assert reader.read(0, 0, SIZE) == noise(0)
    assert not list((tmp_path / "cache").glob("*.part"))
    reader.close()


def test_eviction_takes_past_shards_first_and_live_ones_never(server, tmp_path):
    found = entries(server.root, 4)
    cache = Cache(tmp_path / "cache", 3 * SIZE)
    second = RemoteStore(server.url, found, cache, HttpTransport(), QUICK)
    transport = HttpTransport()
    held = [  # by another process
        cache.acquire(e.url, e.sha256, SIZE, lambda sink, e=e: fetch(transport, f"{server.url}/{e.url}", sink, QUICK))
        for e in found[:3]
    ]
    with pytest.raises(WorldError, match=rf"is full: data.cache_bytes=900000, {3 * SIZE} bytes are in use"):
        second.read(3, 0, 1)
    for descriptor in held:
        os.close(descriptor)
    transport.close()
    cache.retire(found[1].sha256)
    assert second.read(3, 0, SIZE) == noise(3)
    held = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
    assert held == {found[i].sha256 for i in (0, 2, 3)}
    for shard in (0, 1, 2, 3, 0):  # more than fit: its own idle shards give way
        assert second.read(shard, 0, SIZE) == noise(shard)
    second.close()
    with pytest.raises(UserError, match=r"data.cache_bytes=900000 is too small: .* have 900001 bytes"):
        cache.check_budget(900_001)


def test_a_full_disk_and_a_damaged_file(server, tmp_path, monkeypatch):
    reader = store(server, tmp_path)
    reader.read(0, 0, 1)
    reader.close()
    next((tmp_path / "cache").glob("*.tar")).write_bytes(b"cut")
    assert reader.read(0, 0, SIZE) == noise(0)

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(WorldError, match=r"disk of the cache .* is full: .*1.tar has 300000 bytes and \d+ are free"):
        reader.read(1, 0, 1)
    monkeypatch.undo()
    assert not list((tmp_path / "cache").glob("*.part"))
    reader.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.b/c/d.tar?X-Amz-Signature=s#f", "https://a.b/c/d.tar"),
        ("http://me:pass@host:80/x", "http://host:80/x"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("https://[broken?token=s", "https://(unreadable)"),
        ("/data/a?b", "/data/a?b"),
    ],
)
def test_redact(url, shown):
    assert urls.redact(url) == shown


def test_names_of_shards():
    assert urls.join("https://h/a/?sig=1", "b c.tar") == "https://h/a/b%20c.tar?sig=1"
    assert urls.join("s3://bucket", "b c.tar") == "s3://bucket/b c.tar"
    with pytest.raises(UserError, match="commands are never run to read data"):
        urls.check("pipe://cat secret")
    with pytest.raises(UserError, match=r"zip::\.\.\.: chained file systems are not read"):
        urls.check("zip::s3://bucket/a.zip")
    with pytest.raises(UserError, match="name a folder by its path"):
        urls.check("file:///data/a")
    for root in ("https://me:secret@h/a", "https://h/a?X-Amz-Signature=secret"):
        with pytest.raises(UserError, match=r"data.root=https://h/a is given with a password or a query") as caught:
            urls.check(root)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mode", ["shards", "range"])
def test_batches_of_three_epochs_are_those_from_disk(server, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(opening, "Patience", lambda: QUICK)
    write_shards(server.root, 3, 8)
    local = sets.open_source(section("webdataset", server.root), "train", classes=5)
    for name in (*local.names, "restrain-index.json", "restrain-index.bin"):
        server.faults[name] = ["reset", "short", "wrong length"]
    data = section("webdataset", server.url, cache=str(tmp_path / "cache"), mode=mode, cache_bytes="1MB")
    remote = sets.open_source(data, "train", classes=5)
    assert remote.fingerprint == local.fingerprint
    assert sets.open_source(data, "eval", classes=5) is None
    expected, found = (contents(train_loader(source, stop=9)) for source in (local, remote))
    assert found == expected
    assert not any(server.faults.values())
    remote.close()


def test_a_remote_set_without_index(server, tmp_path):
    write_shards(server.root, 1, 1)
    data = section("webdataset", server.url, cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"has no index: .*HTTP 404.*restrain data index"):
        sets.open_source(data, "train")
    with pytest.raises(UserError, match=r"data.name=folder is read from a folder"):
        sets.open_source(section("folder", server.url), "train")


# --------------------------------------------------------------------------------------------- what is fetched before


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_what_is_expected_is_fetched_before_it_is_read(server, tmp_path):
    reader = store(server, tmp_path, shards=6)
    reader.expect([4, 1])
    assert until(lambda: len(list((tmp_path / "cache").glob("*.tar"))) == 2)
    assert dict(server.gets) == {"4.tar": 1, "1.tar": 1}
    assert reader.read(4, 0, 100) == noise(4)[:100]
    assert server.gets["4.tar"] == 1
    reader.close()


def test_fetching_ahead_stays_within_the_budget_and_takes_the_first(server, tmp_path):
    reader = store(server, tmp_path, shards=20, budget=int(5.5 * SIZE))
    reader.expect(range(20))
    assert until(lambda: len(list((tmp_path / "cache").glob("*.tar"))) == 5)
    time.sleep(0.1)
    held = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
    assert held == {entry.sha256 for entry in reader.entries[:5]}  # those that are needed first
    assert sum(server.gets.values()) == 5
    reader.expect([18, 19])
    assert until(lambda: server.gets["19.tar"] == 1)
    for shard in (18, 19):
        assert reader.read(shard, 0, 100) == noise(shard)[:100]
    assert server.gets["18.tar"] == server.gets["19.tar"] == 1
    reader.close()


@pytest.mark.parametrize("times", [1.0, 1.05, 1.5])
def test_a_cache_that_just_holds_what_is_needed_lasts_an_epoch(server, tmp_path, times):
    """With readers and fetchers at work together, and an evaluation beside them."""
    from restrain.data import augment
    from restrain.data.loader import EvalLoader

    write_shards(server.root, 24, 4)
    write_shards(server.root, 6, 4, prefix="val")
    for split in ("train", "eval"):
        sets.open_source(section("webdataset", server.root), split)
    source, held_out = (sets.open_source(remote_section(server, tmp_path), split) for split in ("train", "eval"))
    fields = {"lanes": 2, "window": 8, "threads": 4}
    loader = train_loader(source, **fields)
    needed = [loader.order.ahead(*loader.plan.rows(step)) for step in range(loader.plan.steps_per_epoch)]
    size = source.index.entries.numbers["size"]
    budget = int(times * max(sum(int(size[shard]) for shard in shards) for shards in needed))
    for one in (source, held_out):
        one._store.cache.budget, one._store.keep = budget, 0
    evaluation = EvalLoader(held_out, augment.eval_pipeline(12, 14), rank=0, world=1, batch=4, threads=2)
    expected = contents(train_loader(sets.open_source(section("webdataset", server.root), "train"), **fields))
    found = []
    for batch in loader:
        found += contents([batch])
        if batch.step % 10 == 5:
            assert sum(int(one.valid.sum()) for one in evaluation) == 24
    assert found == expected
    for one in (source, held_out):
        one.close()


def test_a_failure_ahead_is_raised_by_the_reader_alone(server, tmp_path):
    reader = store(server, tmp_path)
    server.faults["1.tar"] = [403]
    reader.expect([1])
    assert until(lambda: server.gets["1.tar"] == 1)
    assert reader.read(0, 0, 10) == noise(0)[:10]
    server.faults["1.tar"] = [403]
    with pytest.raises(WorldError, match=r"1\.tar cannot be read: HTTP 403"):
        reader.read(1, 0, 10)
    reader.close()


def test_a_loader_has_its_next_shards_fetched(server, tmp_path, monkeypatch):
    """With lanes and small windows: a step's shards are among those expected, and each is fetched once."""
    write_shards(server.root, 12, 8)
    sets.open_source(section("webdataset", server.root), "train")
    source = sets.open_source(remote_section(server, tmp_path), "train")
    loader = train_loader(source, lanes=2, window=16, stop=12, threads=1)
    seen, order = [], loader.order
    for batch in loader:
        epoch, positions = loader.plan.rows(batch.step)
        seen.append(order.ahead(epoch, positions[0]))
        shard, _ = order(epoch, positions)
        assert set(shard.reshape(-1).tolist()) <= set(seen[-1])
    assert all(count == 1 for name, count in server.gets.items() if name.endswith(".tar"))
    source.close()


def remote_section(server, tmp_path, **fields):
    found = section("webdataset", cache=str(tmp_path / "cache"), **fields)
    found.root = server.url
    return found


def test_a_cache_that_cannot_hold_what_is_read_side_by_side(server, tmp_path):
    write_shards(server.root, 6, 8)
    sets.open_source(section("webdataset", server.root), "train")
    source = sets.open_source(remote_section(server, tmp_path), "train")
    source._store.cache.budget = 30_000
    with pytest.raises(UserError, match=r"data.cache_bytes=30000 is too small: .* read side by side have \d+ bytes"):
        train_loader(source)
    source.close()


def test_evaluation_fetches_ahead_too(server, tmp_path):
    from restrain.data import augment
    from restrain.data.loader import EvalLoader

    write_shards(server.root, 6, 8)
    sets.open_source(section("webdataset", server.root), "train")
    source = sets.open_source(remote_section(server, tmp_path), "train")
    loader = EvalLoader(source, augment.eval_pipeline(12, 14), rank=0, world=1, batch=4, threads=1)
    assert sum(int(batch.valid.sum()) for batch in loader) == 48
    assert all(count == 1 for name, count in server.gets.items() if name.endswith(".tar"))
    source.close()


# -------------------------------------------------------------------------------------------------- index of a URL


def test_the_index_of_a_url_is_that_of_the_folder(server, tmp_path):
    from restrain.cli.main import run

    write_shards(server.root, 3, 4)
    words = ["data", "index", server.url, "--pattern", "train-{000..002}.tar", "--to", str(tmp_path / "index")]
    assert run(words) == 0
    source = sets.open_source(remote_section(server, tmp_path, index=str(tmp_path / "index")), "train")
    local = sets.open_source(section("webdataset", server.root), "train")
    assert source.fingerprint == local.fingerprint
    assert contents(train_loader(source, stop=2)) == contents(train_loader(local, stop=2))
    source.close()
    server.bytes.clear()
    (server.root / "train-001.tar").write_bytes((server.root / "train-002.tar").read_bytes())
    assert run(words) == 0
    changed = index.load(tmp_path / "index")
    assert changed.fingerprint != local.fingerprint
    index.write(
        [tmp_path / "index"],
        Index("shards", changed.entries, changed.table, "", [("train-000.tar", 1, "x")]),
        changed.table.tobytes(),
    )
    write_shards(server.root, 2, 4, prefix="val")
    server.faults["train-000.tar"] = [503]  # where only its tag is asked for
    assert run([*words[:3], "--pattern", "val-{000..001}.tar", *words[5:]]) == 0
    assert run(words) == 0
    both = index.load(tmp_path / "index")
    assert len(both.names) == 5
    assert both.excluded == [("train-000.tar", 1, "x")]
    assert server.bytes["train-001.tar"] > 0
    assert run(["data", "index", server.url, "--to", str(tmp_path / "index")]) == 2  # a web server lists nothing
    assert run([*words[:-2]]) == 2


def test_a_table_too_large_to_fetch_whole(server, tmp_path, monkeypatch):
    write_shards(server.root, 4, 8)
    local = sets.open_source(section("webdataset", server.root), "train")
    monkeypatch.setattr(opening, "CHECKED_TABLE", 64)
    monkeypatch.setattr(index, "CHECKED_TABLE", 64)
    source = sets.open_source(remote_section(server, tmp_path), "train")
    assert server.gets["restrain-index.bin"] == 0
    assert contents(train_loader(source, stop=3)) == contents(train_loader(local, stop=3))
    assert 1 <= server.gets["restrain-index.bin"] <= 4
    source.close()
    again = sets.open_source(remote_section(server, tmp_path), "train")
    before = server.gets["restrain-index.bin"]
    assert again.index.crcs(2).tolist() == local.index.crcs(2).tolist()
    assert server.gets["restrain-index.bin"] == before  # kept in the cache
    again.close()


def test_who_waits_for_a_download_that_fails_fails_with_it(server, tmp_path):
    """Trying again as long would take both past the collectives' time-out."""
    import threading

    patience = Patience(tries=4, deadline=20, stall_seconds=0.2, first_wait=0.3, longest_wait=0.3)
    found, errors = entries(server.root), []
    server.faults["0.tar"] = [503] * 50

    def read():
        reader = RemoteStore(server.url, found, Cache(tmp_path / "cache"), HttpTransport(), patience)
        try:
            reader.read(0, 0, 10)
        except WorldError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert len(set(errors)) == 1
    assert server.gets["0.tar"] == 4  # one of them tried
    server.faults.clear()
    reader = store(server, tmp_path)
    assert reader.read(0, 0, 10) == noise(0)[:10]  # and the next one tries again
    reader.close()
