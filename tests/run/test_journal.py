"""Journals: what is written is there, kills tear one line at most, and cutting back moves lines exactly once."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restrain.errors import WorldError
from restrain.run.journal import Journal, read, repair, truncate_after
from restrain.run.numbers import number


def steps(path):
    return [entry["step"] for entry in read(path)]


def test_lines_arrive_in_order_twice_a_second(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write('{"step": 0}')
    journal.write({"step": 1, "train/loss": 0.5})
    deadline = time.monotonic() + 0.5
    while len(read(journal.path)) < 2:
        assert time.monotonic() < deadline + 2  # an idle machine needs 0.25 s; leave a busy one some time
        time.sleep(0.01)
    journal.write({"step": 2})
    journal.sync()
    assert read(journal.path) == [{"step": 0}, {"step": 1, "train/loss": 0.5}, {"step": 2}]
    journal.write({"step": 3})
    journal.close()
    journal.close()
    assert steps(journal.path) == [0, 1, 2, 3]
    with pytest.raises(WorldError, match="closed"):
        journal.write({"step": 4})
    again = Journal(journal.path)
    again.write({"step": 4})
    again.close()
    assert steps(journal.path) == [0, 1, 2, 3, 4]


def test_a_write_costs_microseconds(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    times = []
    for step in range(2000):
        line = f'{{"step": {step}, "train/loss": {number(0.1)}}}'
        begin = time.perf_counter_ns()
        journal.write(line)
        times.append(time.perf_counter_ns() - begin)
    journal.close()
    assert sorted(times)[len(times) // 2] < 5_000
    assert len(read(journal.path)) == 2000


@given(st.floats())
def test_floats_survive_as_strict_json(x):
    back = json.loads(number(x), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert float(back) == x or math.isnan(x)


def test_non_finite_floats(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write({"step": 1, "a": math.nan, "b": [math.inf, {"c": -math.inf}], "text": "fine"})
    journal.write(f'{{"step": 2, "a": {number(-math.inf)}}}')
    journal.close()
    for line in journal.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    first, second = read(journal.path)
    assert math.isnan(first["a"])
    assert first["b"] == ["Infinity", {"c": "-Infinity"}]
    assert second["a"] == -math.inf


def test_a_torn_last_line_is_tolerated_and_repaired(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for torn in ('{"step": 2, "lo', '{"step": 2}', "\0" * 70_000, ""):
        path.write_text('{"step": 0}\n{"step": 1}\n' + torn)
        assert steps(path) == [0, 1]
        assert repair(path) == len(torn)
        assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    path.write_text('{"step"')
    journal = Journal(path)
    journal.write({"step": 5})
    journal.close()
    assert steps(path) == [5]
    assert repair(tmp_path / "none") == 0
    assert read(tmp_path / "none") == []


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(WorldError, match="Line 2 of"):
        read(path)
    path.write_text("[]\n")
    with pytest.raises(WorldError, match="Line 1 of"):
        read(path)


def test_kill_nine_in_the_middle_of_writing(tmp_path):
    """What was synced is there, whole, and at most the last line is torn."""
    path = tmp_path / "metrics.jsonl"
    child = os.fork()
    if child == 0:
        journal = Journal(path)
        for step in range(10**9):
            journal.write({"step": step, "filler": "x" * 100})
            if step % 500 == 0:
                journal.sync()
                (tmp_path / "synced").write_text(str(step))
        os._exit(0)
    while not (tmp_path / "synced").exists() or int((tmp_path / "synced").read_text() or 0) < 2000:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    there = steps(path)
    assert there == list(range(len(there)))
    assert len(there) > 2000
    Journal(path).close()
    assert steps(path) == there


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_surfaces_on_the_callers_next_call(tmp_path, monkeypatch, code):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write({"step": 0})
    journal.sync()

    def failing(fd, data):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing)
        journal.write({"step": 1})
        time.sleep(0.6)
        with pytest.raises(WorldError, match=r"metrics\.jsonl"):
            journal.write({"step": 2})
    with pytest.raises(WorldError):  # it stays closed: a hole in a journal would be a lie
        journal.sync()
    with pytest.raises(WorldError):
        journal.close()
    assert steps(journal.path) == [0]


def test_a_really_full_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        journal = Journal(disk / "metrics.jsonl")
        for step in range(1000):
            journal.write({"step": step, "filler": "x" * 100})
        with pytest.raises(WorldError, match="The disk is full"):
            journal.sync()
        with pytest.raises(WorldError):
            journal.close()
        there = steps(journal.path)
        assert there == list(range(len(there)))
        assert 0 < len(there) < 1000
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_guard_stops_a_displaced_writer(tmp_path):
    def displaced():
        raise WorldError("taken over by process 1 on n1")

    journal = Journal(tmp_path / "metrics.jsonl", guard=displaced)
    journal.write({"step": 0})
    with pytest.raises(WorldError, match="taken over"):
        journal.sync()
    with pytest.raises(WorldError, match="taken over"):
        journal.close()
    assert read(journal.path) == []


# ---------------------------------------------------------------------------------------------------- cutting back


def lines(*numbers):
    return "".join(f'{{"step": {n}}}\n' for n in numbers)


def test_cutting_back(tmp_path):
    path, into = tmp_path / "metrics.jsonl", tmp_path / "attempts" / "2"
    assert truncate_after(path, 5, into) == 0
    path.write_text(lines(0, 1, 2) + '{"event": "start"}\n' + lines(3, 4) + '{"step": 5, "lo')
    assert truncate_after(path, 2, into) == 3
    assert path.read_text() == lines(0, 1, 2) + '{"event": "start"}\n'
    assert (into / "metrics.jsonl").read_text() == lines(3, 4) + '{"step": 5, "lo\n'
    assert truncate_after(path, 2, into) == 0
    assert truncate_after(path, 0, into) == 2  # a second cut of one attempt is appended
    assert (into / "metrics.jsonl").read_text() == lines(3, 4) + '{"step": 5, "lo\n' + lines(1, 2)
    assert truncate_after(path, -1, into) == 1
    assert path.read_text() == '{"event": "start"}\n'


def test_killed_anywhere_while_cutting_back_then_again_twice(tmp_path, kills):
    path, into = tmp_path / "metrics.jsonl", tmp_path / "attempts" / "2"

    def prepare():
        shutil.rmtree(into, ignore_errors=True)
        path.write_text(lines(*range(6)))
        return lambda: truncate_after(path, 2, into)

    for where in kills(prepare):
        moved = read(into / "metrics.jsonl")
        assert steps(path) == [0, 1, 2] or (steps(path) == list(range(6))), where
        if steps(path) == [0, 1, 2]:
            assert [entry["step"] for entry in moved] == [3, 4, 5], where
        for _ in range(2):
            truncate_after(path, 2, into)
            assert steps(path) == [0, 1, 2], where
            assert steps(into / "metrics.jsonl") == [3, 4, 5], where


def test_a_disk_that_fails_while_cutting_back(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(0, 1))

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorldError, match="The disk is full"):
        truncate_after(path, 0, tmp_path / "attempts")
    assert path.read_text() == lines(0, 1)
