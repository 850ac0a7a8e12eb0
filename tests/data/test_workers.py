"""Processes in place of threads: the same rows, events and refusals, and a clear end where one is killed."""

import os
import signal
import time

import pytest

from restrain.data.sets import open_source
from restrain.errors import UserError, WorldError

from .making import contents, jpeg, section, train_loader, write_shards, write_tar


@pytest.fixture
def shards(tmp_path):
    write_shards(tmp_path / "set", 3, 8)
    source = open_source(section("webdataset", tmp_path / "set"), "train", classes=5)
    yield source
    source.close()


@pytest.mark.parametrize(("processes", "world", "micro"), [(1, 1, 8), (3, 1, 4), (2, 2, 2)])
def test_the_same_rows_as_threads(shards, processes, world, micro):
    for rank in range(world):
        where = {"rank": rank, "world": world, "micro": micro}
        assert contents(train_loader(shards, processes=processes, **where)) == contents(train_loader(shards, **where))


def test_from_any_step_and_again(shards):
    loader = train_loader(shards, processes=2, start=2)
    first = contents(loader)
    assert first == contents(train_loader(shards, start=2))
    assert contents(loader) == first


def test_bad_samples_are_told(tmp_path):
    members = [
        m for n in range(8) for m in ((f"{n}.jpg", jpeg(n) if n != 3 else b"\xff\xd8\xffno"), (f"{n}.cls", b"1"))
    ]
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set/train-0.tar", members)
    source = open_source(section("webdataset", tmp_path / "set"), "train", classes=5)
    events = [[batch.replaced for batch in train_loader(source, processes=p, batch=8)] for p in (0, 2)]
    assert events[0] == events[1]
    assert [one.j for one in events[1][0]] == [3]
    refused = open_source(section("webdataset", tmp_path / "set"), "train", classes=1)
    with pytest.raises(UserError, match="Label 1 out of range: sample"):
        list(train_loader(refused, processes=2, batch=8))


def test_a_process_that_is_killed_is_named(shards):
    loader = train_loader(shards, processes=2, stop=500)
    batches = iter(loader)
    next(batches)
    import multiprocessing

    children = [child for child in multiprocessing.active_children() if child.name == "restrain-data"]
    assert len(children) == 2
    os.kill(children[0].pid, signal.SIGKILL)
    with pytest.raises(WorldError, match="A data process was ended by signal 9"):
        for _ in batches:
            pass
    loader.close()
    deadline = time.monotonic() + 10
    while any(child.is_alive() for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(child.is_alive() for child in children)


def test_closing_ends_the_processes(shards):
    import multiprocessing

    loader = train_loader(shards, processes=2, stop=500)
    batches = iter(loader)
    next(batches)
    loader.close()
    assert not [child for child in multiprocessing.active_children() if child.name == "restrain-data"]


@pytest.mark.parametrize("mode", ["shards", "range"])
def test_over_http(tmp_path, mode):
    from .faulty import FaultyServer

    root = write_shards(tmp_path / "set", 3, 8)
    local = open_source(section("webdataset", root), "train", classes=5)
    server = FaultyServer(root)
    data = section("webdataset", cache=str(tmp_path / "cache"), mode=mode)
    data.root = server.url
    remote = open_source(data, "train", classes=5)
    assert contents(train_loader(remote, processes=2)) == contents(train_loader(local))
    remote.close()
    server.shutdown()
    server.server_close()


def test_stages_are_timed_in_processes_too(shards):
    from restrain.data.laps import STAGES, Laps

    laps = Laps(every=1)
    contents(train_loader(shards, processes=2, laps=laps, stop=3))
    assert laps.sums().rows >= 24
    assert all(laps.sums().wall[stage] > 0 for stage in STAGES)


def test_digits_need_none():
    digits = open_source(section("digits"), "train")
    ops = ()
    fields = {"ops": ops, "size": 8, "batch": 64, "group": 16, "stop": 2}
    assert contents(train_loader(digits, processes=2, **fields)) == contents(train_loader(digits, **fields))
