"""Kills at every file system call of a save, and damage to every byte of what it wrote."""

import json
import math
import os
import pickle
import shutil
import zipfile

import pytest
import torch

from restrain.errors import WorldError
from restrain.run import manifest
from restrain.run.checkpoint import Reader, Slice, Writer, clean, newest, pointed
from restrain.run.manifest import Damaged, encode_manifest, verify


def content(value, rank, world):
    weights = torch.full((4,), float(value)).chunk(world)[rank]
    return {
        "w|param": Slice(weights, (4,), (rank * len(weights),)),
        "m|momentum": Slice(-weights, (4,), (rank * len(weights),)),
    }


def save(folder, step, value, attempt, world=1, keep=1, best=True):
    """Rank by rank, rank 0 last: the calls then come in the same order each time."""
    for rank in reversed(range(world)):
        writer = Writer(folder, rank, world, attempt, keep=keep, deadline=5)
        writer.save(step, content(value, rank, world), {"value": value}, best=best)
        writer.wait()


def value_of(path):
    """The one value that all of a checkpoint holds."""
    with Reader(path) as reader:
        value = reader.scalars["value"]
        assert torch.equal(reader.read("w|param"), torch.full((4,), float(value)))
        assert torch.equal(reader.read("m|momentum"), torch.full((4,), -float(value)))
    return value


def recover(folder, attempt):
    """What a new start does, and that the folder is in order then."""
    found = newest(folder)
    found = clean(folder, attempt, found)
    if found.path is not None:
        assert newest(folder).step == found.step
        assert pointed(folder, "LATEST") == folder / f"step-{found.step}"
        verify(pointed(folder, "BEST"))  # the newest was the best in these tests, unless it is not there
    left = [path.name for path in folder.iterdir() if path.name not in ("LATEST", "BEST")]
    assert all(manifest.STEP.fullmatch(name) and ".old" not in name for name in left), left
    return found


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_anywhere_in_the_first_save(tmp_path, kills, world):
    folder = tmp_path / "checkpoints"

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return lambda: save(folder, 1, 1, attempt=1, world=world)

    outcomes = set()
    for where in kills(prepare):
        found = newest(folder)
        assert found.problems == [], where
        outcomes.add(found.step)
        assert found.path is None or value_of(found.path) == 1
        recover(folder, 2)
    assert outcomes == {None, 1}


@pytest.mark.parametrize("same_step", [False, True])
def test_killed_anywhere_in_a_later_save(tmp_path, kills, same_step):
    """The next step (which prunes the one before), and the same step again (which replaces it)."""
    folder, before = tmp_path / "checkpoints", tmp_path / "before"
    save(before, 1, 1, attempt=1)
    step = 1 if same_step else 2

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        return lambda: save(folder, step, 2, attempt=2)

    outcomes = set()
    for where in kills(prepare):
        found = newest(folder)
        assert found.problems == [], where
        assert found.path is not None, where
        value = value_of(found.path)
        assert found.step == (step if value == 2 else 1)
        outcomes.add(value)
        assert value_of(recover(folder, 3).path) == value, where
        if value == 2:
            assert pointed(folder, "BEST") == folder / f"step-{step}", where
        save(folder, 3, 3, attempt=3)
        assert sorted(path.name for path in folder.iterdir()) == ["BEST", "LATEST", "step-3"], where
        assert value_of(folder / "step-3") == 3
    assert outcomes == {1, 2}


def test_killed_anywhere_while_cleaning_up(tmp_path, kills):
    """From the worst state: set aside, not yet replaced, with remains of another attempt."""
    folder, before = tmp_path / "checkpoints", tmp_path / "before"
    save(before, 7, 7, attempt=1)
    os.rename(before / "step-7", before / "step-7.tmp-1")
    (before / "step-7.tmp-1" / "manifest.json").unlink()
    save(before, 1, 1, attempt=1)
    os.rename(before / "step-1", before / "step-1.old-2")
    (before / "LATEST").write_text("step-7\n")

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        return lambda: clean(folder, 3, newest(folder))

    for where in kills(prepare):
        assert value_of(newest(folder).path) == 1, where
        assert value_of(recover(folder, 4).path) == 1, where


# ------------------------------------------------------------------------------------------------------- damage


def two(folder):
    save(folder, 1, 1, attempt=1, keep=2)
    save(folder, 2, 2, attempt=1, keep=2)
    return folder / "step-2"


def test_a_flipped_bit_anywhere_is_seen_and_the_one_before_is_used(tmp_path):
    last = two(tmp_path)
    for file in sorted(last.iterdir()):
        raw = file.read_bytes()
        for at in range(len(raw)):
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
            with pytest.raises(Damaged, match=file.name):
                verify(last)
        found = newest(tmp_path)
        assert found.step == 1
        assert len(found.problems) == 1
        assert str(file) in found.problems[0]
        file.write_bytes(raw)
    assert newest(tmp_path).step == 2


def test_cut_grown_missing_and_linked_files_are_seen(tmp_path):
    last = two(tmp_path)
    for file in sorted(last.iterdir()):
        raw = file.read_bytes()
        for damaged in (b"", raw[:7], raw[:-1], raw + b"\0", b"\0" * len(raw)):
            file.write_bytes(damaged)
            assert newest(tmp_path).step == 1
        file.unlink()
        found = newest(tmp_path)
        assert found.step == 1
        assert "missing" in found.problems[0]
        (tmp_path / "elsewhere").write_bytes(raw)
        file.symlink_to(tmp_path / "elsewhere")
        assert newest(tmp_path).step == 1
        file.unlink()
        file.mkdir()
        assert newest(tmp_path).step == 1
        file.rmdir()
        os.mkfifo(file)  # must not block
        assert newest(tmp_path).step == 1
        file.unlink()
        file.write_bytes(raw)
    assert newest(tmp_path).step == 2


def test_none_that_verifies_is_told_apart_from_none(tmp_path):
    assert newest(tmp_path / "nowhere").problems == []
    last = two(tmp_path)
    for path in (last, tmp_path / "step-1"):
        (path / "optim-0000.safetensors").write_bytes(b"")
    found = newest(tmp_path)
    assert found.path is None
    assert len(found.problems) == 2


def test_a_checkpoint_moved_to_another_step_is_refused(tmp_path):
    last = two(tmp_path)
    os.rename(last, tmp_path / "step-99")
    found = newest(tmp_path)
    assert found.step == 1
    assert "step 2" in found.problems[0]


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def planted(path, name, raw):
    """Replace a file and make the manifest agree, as someone with write access could."""
    body = manifest.read_manifest(path)
    (path / name).write_bytes(raw)
    size, value = manifest.digest(path / name)
    body["files"][name] = {"size": size, "sha256": value}
    (path / "manifest.json").write_bytes(encode_manifest(body))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, monkeypatch, kind):
    last = two(tmp_path)
    archive = tmp_path / "bomb.pt"
    if kind == "torch":
        torch.save(Bomb(), archive)
        assert zipfile.is_zipfile(archive)
    else:
        archive.write_bytes(pickle.dumps(Bomb()))

    def never(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, never)
    for agree in (False, True):
        if agree:
            planted(last, "model-0000.safetensors", archive.read_bytes())
        else:
            (last / "model-0000.safetensors").write_bytes(archive.read_bytes())
        found = newest(tmp_path)
        assert found.step == 1
        assert "model-0000.safetensors" in found.problems[0]
        with Reader(last) as reader, pytest.raises(WorldError, match="which Restrain never loads") as caught:
            reader.read("w|param")
        assert "\n" not in str(caught.value)


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "raw",
    [
        (1 << 62).to_bytes(8, "little") + b"{}",
        (200 << 20).to_bytes(8, "little") + b"{" * 64,
        b"\x04\0\0\0\0\0\0\0[[[[",
        header({"w|param": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}}, b"\0" * 16),
        header({"w|param": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}, b""),
        header({"w|param": {"dtype": "F32", "shape": [2, -2], "data_offsets": [0, 16]}}, b"\0" * 16),
        header({"w|param": {"dtype": "X99", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16),
        header({"w|param": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 17),
        header({"v|param": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16),
        header({"w|param": {"dtype": "I32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16),
        header({"w|param": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, b"\0" * 16),
        header({"w|param": None}),
    ],
)
def test_malformed_headers_are_refused_even_when_the_manifest_agrees(tmp_path, raw):
    last = two(tmp_path)
    planted(last, "model-0000.safetensors", raw)
    with pytest.raises(Damaged, match="model-0000"):
        verify(last)
    with Reader(last) as reader, pytest.raises(WorldError):
        reader.read("w|param")


def change(body, *path_and_value):
    *path, last, value = path_and_value
    for key in path:
        body = body[key]
    body[last] = value


@pytest.mark.parametrize(
    "where",
    [
        ("files", "../../outside.safetensors", {"size": 1, "sha256": ""}),
        ("files", "/etc/passwd", {"size": 1, "sha256": ""}),
        ("files", "model-0000.pt", {"size": 1, "sha256": ""}),
        ("files", "model-0000.safetensors\n", {"size": 1, "sha256": ""}),
        ("files", "model-0001.safetensors", None),
        ("tensors", "w|param", "slices", [["../x", [0], [4]]]),
        ("tensors", "w|param", "slices", [["model-0000.safetensors", [1], [4]]]),
        ("tensors", "w|param", "slices", [["model-0000.safetensors", [-1], [4]]]),
        ("tensors", "w|param", "slices", [["model-0000.safetensors", [0, 0], [4, 1]]]),
        ("tensors", "w|param", "dtype", "OBJECT"),
        ("tensors", "w|param", None),
        ("tensors", []),
        ("scalars", None),
        ("step", "2"),
        ("format", "restrain-checkpoint-9"),
    ],
)
def test_malformed_manifests_are_refused_even_with_the_right_hash(tmp_path, where):
    last = two(tmp_path)
    body = manifest.read_manifest(last)
    change(body, *where)
    (last / "manifest.json").write_bytes(encode_manifest(body))
    with pytest.raises(Damaged, match=r"manifest\.json"):
        verify(last)
    with pytest.raises(WorldError):
        Reader(last)
    assert newest(tmp_path).step == 1


def test_item_sizes_are_those_of_torch():
    from restrain.run.slices import NAMES

    assert NAMES.keys() == manifest.ITEM_SIZES.keys()
    assert all(manifest.ITEM_SIZES[name] == dtype.itemsize for name, dtype in NAMES.items())
    assert math.prod([]) == 1  # a scalar has one item


def test_everything_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    """kill -9 cannot show it (the page cache survives), a power failure would."""
    events, fsync, rename, replace = [], os.fsync, os.rename, os.replace

    def logged(fd):
        events.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", logged)
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(("rename", b.name)), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("replace", b.name)), replace(a, b)))
    save(tmp_path / "checkpoints", 1, 1, attempt=1)
    at = events.index(("rename", "step-1"))
    durable = {name for what, name in events[:at] if what == "fsync"}
    assert durable >= {"model-0000.safetensors", "optim-0000.safetensors", "manifest.json", "step-1.tmp-1"}
    assert events[at + 1] == ("fsync", "checkpoints")
    pointers = [name for what, name in events[at:] if what == "replace"]
    assert pointers == ["BEST", "LATEST"]
