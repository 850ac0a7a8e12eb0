"""Saving, loading on other worlds, keeping, pointing; failures of the disk."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restrain.errors import WorldError
from restrain.run import checkpoint
from restrain.run import slices as slices_module
from restrain.run.checkpoint import Reader, Slice, Writer, clean, newest, point, pointed, share
from restrain.run.manifest import verify
from restrain.run.slices import covered, overlap

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def save(folder, step, parts, scalars=None, **options):
    """Save from one writer a rank; ``parts``: one mapping of slices a rank."""
    best = options.pop("best", False)
    options = {"attempt": 1, **options}
    writers = [Writer(folder, rank, len(parts), **options) for rank in range(len(parts))]
    for writer, part in zip(writers, parts, strict=True):
        writer.save(step, part, scalars or {"step": step}, best=best)
    for writer in writers:
        writer.wait()


def tiny(value):
    return [{"w|param": Slice(torch.full((3,), float(value))), "w|momentum": Slice(torch.full((3,), -float(value)))}]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------- round trips


def test_all_dtypes_scalars_and_strides(tmp_path):
    tensors = {f"t{i}|param": torch.arange(6).reshape(2, 3).to(dtype) for i, dtype in enumerate(DTYPES)}
    tensors["zero|buffer"] = torch.tensor(7, dtype=torch.int64)
    tensors["empty|ema"] = torch.zeros(0, 4)
    tensors["conv|momentum"] = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).to(
        memory_format=torch.channels_last
    )
    scalars = {"step": 3, "best": {"value": 0.1 + 0.2, "step": 2}, "big": 2**63, "plan": [1, [2]], "none": None}
    save(tmp_path, 3, [{name: Slice(tensor) for name, tensor in tensors.items()}], scalars, placement={"micro": 4})
    found = newest(tmp_path)
    assert (found.step, found.problems) == (3, [])
    with Reader(found.path) as reader:
        assert reader.scalars == scalars
        assert (reader.step, reader.world, reader.placement) == (3, 1, {"micro": 4})
        assert reader.names() == sorted(tensors)
        for name, tensor in tensors.items():
            read = torch.zeros_like(tensor)
            reader.read_into(name, read)
            assert torch.equal(read, tensor)
            assert read.stride() == tensor.stride()
            assert reader.read(name).dtype == tensor.dtype
    assert sorted(path.name for path in found.path.iterdir()) == [
        "manifest.json",
        "model-0000.safetensors",
        "optim-0000.safetensors",
    ]
    json.loads((found.path / "manifest.json").read_text())  # people may read it with any tool


def test_files_are_safetensors_to_the_library(tmp_path):
    from safetensors.torch import load_file

    value = torch.arange(5, dtype=torch.bfloat16)
    save(tmp_path, 1, [{"a.b|param": Slice(value), "c|buffer": Slice(torch.tensor(True))}])
    loaded = load_file(tmp_path / "step-1" / "model-0000.safetensors")
    assert torch.equal(loaded["a.b|param"], value)
    assert loaded["c|buffer"].item() is True


def test_a_header_length_that_begins_like_a_pickle_or_a_zip_is_still_read(tmp_path):
    for length in (0x80, 0x4B50):
        name = "n" * (length - len('{"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') - 6) + "|param"
        save(tmp_path, length, [{name: Slice(torch.ones(1))}])
        raw = (tmp_path / f"step-{length}" / "model-0000.safetensors").read_bytes()
        assert int.from_bytes(raw[:8], "little") == length
        assert newest(tmp_path).step == length


@st.composite
def cuts(draw, shape, most=3):
    """A grid of boxes that tile ``shape``."""
    edges = []
    for n in shape:
        inner = draw(st.lists(st.integers(1, max(1, n - 1)), max_size=most - 1, unique=True)) if n > 1 else []
        edges.append([0, *sorted(inner), n])
    boxes = [((), ())]
    for edge in edges:
        boxes = [((*o, a), (*s, b - a)) for o, s in boxes for a, b in itertools.pairwise(edge)]
    return boxes


@st.composite
def resharded(draw):
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    stored, wanted = draw(cuts(shape)), draw(cuts(shape))
    return shape, draw(st.permutations(stored)), wanted, draw(st.sampled_from(DTYPES))


def part(tensor, box):
    return tensor[slices_module.within(box, (0,) * tensor.dim())]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(resharded())
def test_any_split_loads_into_any_other(new_folder, case):
    shape, stored, wanted, dtype = case
    folder = new_folder()
    count = max(1, int(torch.tensor(shape).prod())) if shape else 1
    whole = (torch.arange(count) % 100).reshape(shape).to(dtype)
    save(folder, 1, [{"w|param": Slice(part(whole, box), shape, box[0])} for box in stored])
    with Reader(newest(folder).path) as reader:
        assert torch.equal(reader.read("w|param"), whole)
        for box in wanted:
            target = torch.zeros(tuple(reversed(box[1])), dtype=dtype).permute(tuple(range(len(shape)))[::-1])
            strides = target.stride()
            reader.read_into("w|param", target, box[0], shape)
            assert torch.equal(target, part(whole, box))
            assert target.stride() == strides


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.tuples(st.integers(0, 4), st.integers(0, 4))),
        max_size=5,
    )
)
def test_coverage_is_that_of_a_mask(parts):
    box = ((1, 1), (3, 3))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    for offset, shape in parts:
        mask[slices_module.within((offset, shape), (0, 0))] = True
    assert covered(box, parts) == bool(part(mask, box).all())
    for one in parts:
        common = overlap(box, one)
        both = torch.zeros(8, 8, dtype=torch.int8)
        part(both, box)[:] += 1
        part(both, one)[:] += 1
        assert (0 if common is None else common[1][0] * common[1][1]) == int((both == 2).sum())


def test_replicated_tensors_are_shared_out(tmp_path):
    sizes = {f"p{i}": 100 - i for i in range(20)}
    mine = [share(sizes, rank, 3) for rank in range(3)]
    assert sorted(itertools.chain.from_iterable(mine)) == sorted(sizes)
    loads = [sum(sizes[name] for name in part) for part in mine]
    assert max(loads) - min(loads) <= 100
    full = {f"{name}|param": Slice(torch.full((2,), float(i))) for i, name in enumerate(sizes)}
    save(tmp_path, 1, [{f"{name}|param": full[f"{name}|param"] for name in part} for part in mine])
    save(tmp_path, 2, [full, full])  # or all ranks give all of it
    for step in (1, 2):
        with Reader(tmp_path / f"step-{step}") as reader:
            assert all(torch.equal(reader.read(name), slice.tensor) for name, slice in full.items())


# --------------------------------------------------------------------------------------------------- refusals


def test_what_does_not_fit_is_named(tmp_path):
    save(tmp_path, 1, [{"w|param": Slice(torch.ones(2, 3), (4, 3), (0, 0)), "v|param": Slice(torch.ones(2))}])
    with Reader(tmp_path / "step-1") as reader:
        for name, target, offset, shape, text in [
            ("x|param", torch.zeros(2), None, None, "x|param is not there"),
            ("v|param", torch.zeros(3), None, None, r"shape \(2,\) there, but \(3,\)"),
            ("v|param", torch.zeros(2, 1), None, None, "shape"),
            ("v|param", torch.zeros(2), (1,), None, "shape"),
            ("v|param", torch.zeros(1), (-1,), None, "shape"),
            ("v|param", torch.zeros(1), (0,), (3,), "shape"),
            ("v|param", torch.zeros(2).double(), None, None, "float32 there, but torch.float64 here"),
            ("w|param", torch.zeros(4, 3), None, None, "not wholly there"),
            ("w|param", torch.zeros(2, 3), (1, 0), (4, 3), "not wholly there"),
        ]:
            with pytest.raises(WorldError, match=text):
                reader.read_into(name, target, offset, shape)
        top = torch.zeros(2, 2)
        reader.read_into("w|param", top, (0, 1))
        assert top.sum() == 4
    with pytest.raises(WorldError, match="no checkpoint"):
        Reader(tmp_path / "step-9")


def test_slices_that_do_not_lie_in_their_tensor_are_refused(tmp_path):
    for bad in (Slice(torch.ones(2), (3,), (2,)), Slice(torch.ones(2), (2, 2), (0,)), Slice(torch.ones(2).cfloat())):
        with pytest.raises(ValueError):
            Writer(tmp_path, 0, 1, 1).save(1, {"w|param": bad}, {})


def test_ranks_that_disagree_on_a_shape_are_refused(tmp_path):
    parts = [{"w|param": Slice(torch.ones(2), (4,), (0,))}, {"w|param": Slice(torch.ones(2), (5,), (2,))}]
    with pytest.raises(ValueError, match="disagree on w"):
        save(tmp_path, 1, parts)
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------------ asynchronous


def test_the_snapshot_is_taken_at_the_call(tmp_path, monkeypatch):
    go = threading.Event()
    original = slices_module.write_file
    monkeypatch.setattr("restrain.run.checkpoint.write_file", lambda *a: (go.wait(), original(*a))[1])
    weight, scalars = torch.ones(4), {"list": [1]}
    writer = Writer(tmp_path, 0, 1, 1)
    writer.save(1, {"w|param": Slice(weight)}, scalars)
    assert writer.busy
    weight.fill_(9)
    scalars["list"].append(2)
    writer.poll()  # nothing to say yet
    with pytest.raises(WorldError, match="not written after"):
        writer.wait(timeout=0.01)
    second = threading.Thread(target=writer.save, args=(2, {"w|param": Slice(weight)}, {}))
    second.start()
    time.sleep(0.05)
    assert second.is_alive()  # one save in flight: the second waits
    go.set()
    second.join()
    writer.wait()
    assert not writer.busy
    assert writer.committed == 2
    with Reader(tmp_path / "step-1") as reader:
        assert torch.equal(reader.read("w|param"), torch.ones(4))
        assert reader.scalars == {"list": [1]}
    with Reader(tmp_path / "step-2") as reader:
        assert torch.equal(reader.read("w|param"), torch.full((4,), 9.0))


def test_rank_0_waits_for_the_others_and_names_who_is_missing(tmp_path):
    part = tiny(1)[0]
    writer = Writer(tmp_path, 0, 3, 1, deadline=0.1)
    Writer(tmp_path, 2, 3, 1).save(5, part, {})
    writer.save(5, part, {})
    with pytest.raises(WorldError, match=r"rank 1 are not in"):
        writer.wait()
    assert newest(tmp_path) == type(newest(tmp_path))(None, None, [])


def test_a_done_file_of_an_earlier_failed_save_does_not_count(tmp_path):
    part = tiny(1)[0]
    other = Writer(tmp_path, 1, 2, 1)
    other.save(5, part, {})
    other.wait()
    done = tmp_path / "step-5.tmp-1" / "done-0001.json"
    stale = json.loads(done.read_text())
    done.write_text(json.dumps(stale | {"save": 7}))
    writer = Writer(tmp_path, 0, 2, 1, deadline=0.1)
    writer.save(5, part, {})
    with pytest.raises(WorldError, match="rank 1"):
        writer.wait()


def test_the_folder_is_listed_once_a_look_and_each_file_opened_once(tmp_path, monkeypatch):
    """However many ranks are waited for; the looks become rarer, down to two a second."""
    world, opened, pauses = 1000, [], []
    folder = tmp_path / "step-1.tmp-1"
    folder.mkdir()
    slow = iter(range(1, world))

    def sleep(seconds):
        pauses.append(seconds)
        for rank in itertools.islice(slow, 50):
            (folder / f"done-{rank:04d}.json").write_text(json.dumps({"save": 1, "files": {}, "tensors": {}}))

    def done(path, number, read=checkpoint._done):
        opened.append(path.name)
        return read(path, number)

    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    monkeypatch.setattr(checkpoint, "_done", done)
    writer = Writer(tmp_path, 0, world, 1)
    writer.save(1, tiny(1)[0], {})
    writer.wait()
    assert sorted(opened) == [f"done-{rank:04d}.json" for rank in range(world)]
    assert len(pauses) == 20
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.05
    assert pauses[-1] == 0.5


def test_a_failure_of_another_rank_reaches_rank_0(tmp_path, monkeypatch):
    writers = [Writer(tmp_path, rank, 2, 1, deadline=30) for rank in range(2)]

    def full(path, tensors):
        if path.name.endswith("-0001.safetensors"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return slices_module.write_file(path, tensors)

    monkeypatch.setattr("restrain.run.checkpoint.write_file", full)
    for writer in reversed(writers):
        writer.save(1, tiny(1)[0], {})
    for writer in writers:
        with pytest.raises(WorldError, match="disk is full"):
            writer.wait()
    assert names(tmp_path) == []


def test_a_rank_says_that_rank_0_has_given_the_checkpoint_up(tmp_path, monkeypatch):
    """Rank 0 has met a full disk, and has removed the folder that this rank is still writing to."""

    def late(path, tensors):
        facts = slices_module.write_file(path, tensors)
        shutil.rmtree(path.parent)
        return facts

    monkeypatch.setattr("restrain.run.checkpoint.write_file", late)
    writer = Writer(tmp_path, 1, 2, 1)
    writer.save(5, tiny(1)[0], {})
    with pytest.raises(WorldError, match=r"^Rank 1 has not saved .* of step 5: rank 0 gave it up meanwhile, whose own"):
        writer.wait()


def test_before_commit_may_stop_it(tmp_path):
    save(tmp_path, 1, tiny(1))

    def displaced():
        raise WorldError("taken over")

    with pytest.raises(WorldError, match="taken over"):
        save(tmp_path, 2, tiny(2), before_commit=displaced)
    assert names(tmp_path) == ["LATEST", "step-1"]


# ------------------------------------------------------------------------------------------- keeping and pointing


def test_keep_best_and_latest(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step, tiny(step), best=step == 10)
    assert names(tmp_path) == ["BEST", "LATEST", "step-10", "step-30", "step-40"]
    assert pointed(tmp_path, "BEST") == tmp_path / "step-10"
    assert pointed(tmp_path, "LATEST") == tmp_path / "step-40"
    save(tmp_path, 50, tiny(50), best=True, keep=1)
    assert names(tmp_path) == ["BEST", "LATEST", "step-50"]
    save(tmp_path, 60, tiny(60), keep=None)
    assert pointed(tmp_path, "BEST") == tmp_path / "step-50"
    with pytest.raises(ValueError):
        Writer(tmp_path, 0, 1, 1, keep=0)


def test_one_that_is_being_read_is_not_pruned(tmp_path):
    save(tmp_path, 1, tiny(1), keep=1)
    with Reader(tmp_path / "step-1") as reader:
        save(tmp_path, 2, tiny(2), keep=1)
        assert torch.equal(reader.read("w|param"), torch.ones(3))
    save(tmp_path, 3, tiny(3), keep=1)
    assert names(tmp_path) == ["LATEST", "step-3"]


def test_a_damaged_later_one_does_not_count_as_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, tiny(step), keep=2)
    (tmp_path / "step-3" / "manifest.json").unlink()
    assert newest(tmp_path).step == 2
    save(tmp_path, 2, tiny(22), attempt=2, keep=1)  # goes on from 1, say; 3 is replaced when it is reached
    assert names(tmp_path) == ["LATEST", "step-2", "step-3"]
    save(tmp_path, 3, tiny(33), attempt=2, keep=1)
    assert names(tmp_path) == ["LATEST", "step-3"]
    assert verify(tmp_path / "step-3")["attempt"] == 2


def test_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 1, tiny(1), {"evaluated_at": 0})
    save(tmp_path, 1, tiny(5), {"evaluated_at": 1}, attempt=2)
    with Reader(newest(tmp_path).path) as reader:
        assert reader.scalars == {"evaluated_at": 1}
        assert torch.equal(reader.read("w|param"), torch.full((3,), 5.0))
    assert names(tmp_path) == ["LATEST", "step-1"]


def test_pointers_are_hints(tmp_path):
    assert pointed(tmp_path, "LATEST") is None
    save(tmp_path, 1, tiny(1))
    (tmp_path / "LATEST").write_text("../../etc")
    assert pointed(tmp_path, "LATEST") is None
    (tmp_path / "LATEST").write_bytes(b"\xff\x00")
    assert pointed(tmp_path, "LATEST") is None
    point(tmp_path, "LATEST", 9)
    assert pointed(tmp_path, "LATEST") is None
    found = newest(tmp_path)
    assert found.step == 1
    clean(tmp_path, 2, found)
    assert pointed(tmp_path, "LATEST") == tmp_path / "step-1"


def test_clean_leaves_the_own_attempt_alone(tmp_path):
    for name in ("step-5.tmp-1", "step-6.tmp-2", "step-4.trash", "step-3.old-1", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / ".LATEST.123.tmp").write_text("step-")
    clean(tmp_path, 2)
    assert names(tmp_path) == ["notes", "step-6.tmp-2"]


# ---------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_a_failing_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, code):
    """Each file system call of a save fails in turn."""
    save(tmp_path, 1, tiny(1), best=True)
    own = threading.current_thread()
    total = 0
    for name in ("write", "fsync", "open", "rename", "mkdir"):
        at, failed = 0, True
        while failed:
            call, count = getattr(os, name), iter(range(1000))

            def failing(*args, call=call, count=count, at=at, **kwargs):
                if threading.current_thread() is not own and next(count) == at:
                    raise OSError(code, os.strerror(code))
                return call(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(os, name, failing)
                says = ""
                try:
                    save(tmp_path, 2, tiny(2))
                except WorldError as error:
                    says = str(error)
            assert says == "" or ("step 2" in says and "older checkpoints are intact" in says)
            silent = next(count) > at  # folders' fsyncs may fail unnoticed: not every file system has them
            found = newest(tmp_path)
            assert found.problems == []
            assert found.step in ((1, 2) if silent else (2,))
            assert not [n for n in names(tmp_path) if "tmp" in n]
            verify(tmp_path / "step-1")
            failed, at, total = silent, at + 1, total + 1
            subprocess.run(["rm", "-rf", tmp_path / "step-2"], check=True)
    assert total > 15


def test_a_really_full_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        folder = disk / "checkpoints"
        save(folder, 1, tiny(1))
        big = [{"w|param": Slice(torch.ones(1 << 18))}]
        with pytest.raises(WorldError, match="The disk is full: free some space") as caught:
            save(folder, 2, big)
        assert "\n" not in str(caught.value)
        assert names(folder) == ["LATEST", "step-1"]
        assert newest(folder).step == 1
        save(folder, 3, tiny(3))  # and goes on when there is room
        assert newest(folder).step == 3
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.gpu
def test_a_snapshot_of_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    weight = torch.randn(256, 64, 3, 3, device="cuda").to(memory_format=torch.channels_last)
    kept = weight.clone()
    writer = Writer(tmp_path, 0, 1, 1)
    for step in (1, 2):
        writer.save(step, {"w|param": Slice(weight)}, {})
        weight.zero_()
        writer.wait()
        target = torch.zeros_like(weight)
        with Reader(tmp_path / f"step-{step}") as reader:
            reader.read_into("w|param", target)
        assert torch.equal(target, kept)
        weight.copy_(kept)
