"""The run folder: creation, run.json, attempts, and writes that are whole or absent."""

import errno
import json
import os
import threading

import pytest

from restrain.errors import UserError, WorldError
from restrain.run.files import write_atomic
from restrain.run.folder import RunFolder, merged


def test_a_new_run(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "digits" / "one")
    assert not folder.exists()
    assert folder.read_lock() is None
    assert folder.read_info() == {}
    assert folder.state is None
    folder.create()
    folder.create()
    folder.write_lock("seed: 0  # ä\n")
    assert folder.exists()
    assert folder.read_lock() == "seed: 0  # ä\n"
    folder.create()  # a run lives here now: fine
    folder.update_info({"state": "running", "versions": {"torch": "2.15"}})
    folder.update_info({"versions": {"python": "3.11"}, "attempts": {"1": {"host": "n1"}}})
    folder.set_state("finished")
    assert json.loads((folder.path / "run.json").read_text()) == {
        "state": "finished",
        "versions": {"torch": "2.15", "python": "3.11"},
        "attempts": {"1": {"host": "n1"}},
    }
    with pytest.raises(ValueError):
        folder.set_state("tired")


def test_attempts_are_numbered(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create()
    with pytest.raises(RuntimeError):
        _ = folder.attempt_dir
    assert folder.begin_attempt() == 1
    (tmp_path / "attempts" / "notes").mkdir()
    (tmp_path / ".run.json.77.tmp").write_text("{")
    other = RunFolder(tmp_path)
    assert other.begin_attempt() == 2
    assert other.attempt_dir == tmp_path / "attempts" / "2"
    assert not (tmp_path / ".run.json.77.tmp").exists()
    folder.join_attempt(2)
    assert folder.attempt_dir == other.attempt_dir


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        RunFolder(tmp_path).create()
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex").create()


def test_damaged_run_json_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    for text in ('{"state": "run', "[1]"):
        folder.info_file.write_text(text)
        with pytest.raises(WorldError, match=r"run\.json"):
            folder.update_info({"a": 1})


def test_merging():
    assert merged({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 3}, "d": {"e": 1}}) == {
        "a": {"b": 3, "c": 2},
        "d": {"e": 1},
    }


def test_updates_from_threads_all_arrive(tmp_path):
    folder = RunFolder(tmp_path)
    threads = [threading.Thread(target=folder.update_info, args=({str(i): i},)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read_info() == {str(i): i for i in range(20)}


def test_killed_anywhere_in_a_write(tmp_path, kills):
    path = tmp_path / "run.json"

    def prepare():
        path.write_text("old")
        return lambda: write_atomic(path, "new content")

    seen = set()
    for _ in kills(prepare):
        seen.add(path.read_text())
    assert seen == {"old", "new content"}


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failing_disk_leaves_the_old_content(tmp_path, monkeypatch, call):
    folder = RunFolder(tmp_path)
    folder.update_info({"a": 1})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(WorldError, match="The disk is full") as caught:
            folder.update_info({"a": 2})
    assert "\n" not in str(caught.value)
    assert folder.read_info() == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
