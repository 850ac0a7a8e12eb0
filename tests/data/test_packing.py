"""Packing: the same bytes whatever the workers and kills, every image and label, the index that a scan makes."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from restrain.data import index, tars
from restrain.data.indexing import index_shards, match_shards
from restrain.data.manifest import MANIFEST
from restrain.data.packing import packing, plan, record, writing
from restrain.data.packing.items import Item, Part, safe_key
from restrain.data.packing.packing import Settings, pack
from restrain.data.packing.recode import Recoding
from restrain.data.packing.source import Source, recognise
from restrain.data.sets import open_source
from restrain.errors import UserError, WorldError
from tests.data.making import jpeg, section, write_folder, write_tar
from tests.data.test_tars import by_webdataset

ORDER = ["b/2", "a/4", "b/1", "a/6"]
FROZEN = "88d734189fdf4a44"
SMALL = 20_000  # bytes of a shard: a dozen of the images made here


def packed(source: Path, folder: Path, layout: str | None = None, reporter=None, split: str = "train", **settings):
    described = Source(source, recognise(source, layout), split)
    return pack(described, folder, Settings(**{"shard_size": SMALL, **settings}), reporter)


def shards(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def contents(folder: Path, pattern: str = "*.tar") -> dict[str, dict[str, bytes]]:
    """Key -> files, as webdataset itself reads them."""
    samples = [sample for path in sorted(folder.glob(pattern)) for sample in by_webdataset(path)]
    found = {s["__key__"]: {k: v for k, v in s.items() if not k.startswith("__")} for s in samples}
    assert len(found) == len(samples)
    return found


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_folder(tmp_path / "pictures/train", {"cat": 30, "dog": 25, "emu": 20})
    write_folder(tmp_path / "pictures/val", {"cat": 4, "emu": 3})
    return tmp_path / "pictures"


def test_every_image_and_label_is_there(pictures, tmp_path):
    made = packed(pictures, tmp_path / "out").record
    assert made["splits"]["train"]["samples"] == 75
    assert made["splits"]["train"]["shards"] > 3
    for split in "train", "val":
        expected = {
            f"{path.parent.name}/{path.stem}": {
                "jpg": path.read_bytes(),
                "cls": b"%d" % ["cat", "dog", "emu"].index(path.parent.name),
            }
            for path in (pictures / split).glob("*/*.jpg")
        }
        assert contents(tmp_path / "out", f"{split}-*.tar") == expected
    assert (tmp_path / "out/classes.txt").read_text() == "cat\ndog\nemu\n"


def test_the_index_is_that_of_a_scan(pictures, tmp_path):
    out = tmp_path / "out"
    packed(pictures, out)
    made = {name: (out / name).read_bytes() for name in (MANIFEST, index.TABLE)}
    for name in made:
        (out / name).unlink()
    index_shards(out, match_shards(out, "*.tar"), refresh=True)
    assert made == {name: (out / name).read_bytes() for name in made}


@pytest.mark.parametrize("recoding", [Recoding(), Recoding(short_side=12), Recoding(check=True)])
def test_the_same_bytes_whatever_the_workers(pictures, tmp_path, recoding):
    one = packed(pictures, tmp_path / "one", workers=1, recoding=recoding).record
    again = packed(pictures, tmp_path / "again", workers=1, recoding=recoding).record
    four = packed(pictures, tmp_path / "four", workers=4, recoding=recoding).record
    assert shards(tmp_path / "one") == shards(tmp_path / "again") == shards(tmp_path / "four")
    assert one == again == four
    assert {name: (s["sha256"]) for name, s in zip(shards(tmp_path / "one"), one["shards"], strict=True)} == shards(
        tmp_path / "one"
    )


def test_bytes_are_frozen(tmp_path):
    """For ever: a set that is packed again is the same set."""
    for cls in "a", "b":
        (tmp_path / "src" / cls).mkdir(parents=True)
        for n in range(8):
            (tmp_path / "src" / cls / f"{n}.jpg").write_bytes(b"\xff\xd8\xff" + bytes([n]) * 2000)
    packed(tmp_path / "src", tmp_path / "out")
    assert list(contents(tmp_path / "out"))[:4] == ORDER
    assert shards(tmp_path / "out")["train-000000.tar"][:16] == FROZEN


def test_the_order_of_the_directory_does_not_matter(pictures, tmp_path, monkeypatch):
    packed(pictures, tmp_path / "one")
    real = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((p, d[::-1], f[::-1]) for p, d, f in real(*a, **k)))
    shutil.copytree(pictures, tmp_path / "there")
    packed(tmp_path / "there", tmp_path / "two")
    assert shards(tmp_path / "one") == shards(tmp_path / "two")


def test_shuffled_by_the_seed(pictures, tmp_path):
    orders = {}
    for seed in 0, 1, None:
        packed(pictures, tmp_path / str(seed), seed=seed)
        orders[seed] = list(contents(tmp_path / str(seed), "train-*.tar"))
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[None])
    assert orders[0] != orders[1]
    assert [key.split("/")[0] for key in orders[None]] == ["cat"] * 30 + ["dog"] * 25 + ["emu"] * 20
    assert {key.split("/")[0] for key in orders[0][:12]} == {"cat", "dog", "emu"}


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60), st.integers(10_000, 60_000))
def test_shards_are_as_large_as_asked_and_whole(sizes, target):
    items = [Item(str(n), (Part("jpg", bytes(size), True),)) for n, size in enumerate(sizes)]
    found = plan.cut("train", items, target)
    assert [item for shard in found for item in shard.items] == items
    assert [shard.name for shard in found] == [f"train-{n:06d}.tar" for n in range(len(found))]
    largest = max(map(plan.stored_size, items))
    assert all(0 < sum(map(plan.stored_size, shard.items)) < target + largest for shard in found)


@given(st.text(max_size=300), st.text(max_size=300))
def test_keys_are_safe_and_their_own(one, other):
    key = safe_key(one)
    assert tars.split_name(f"{key}.jpg") == (key, "jpg")
    assert not key.startswith("/")
    assert ".." not in key.split("/")
    assert len(writing._header(f"{key}.jpeg", 5)) == 512  # plain ustar, nothing before it
    assert (safe_key(other) == key) == (other == one)


@pytest.mark.parametrize("recode", [False, True])
def test_killed_and_gone_on_with(tmp_path, recode):
    """kill -9 in the middle, half a shard left behind: the second call makes the rest, and the bytes are the same."""
    root = tmp_path / "src"
    write_folder(root, {"a": 60, "b": 60})
    options = ["--shard-size", "12kB", "--workers", "2", *(["--short-side", "12"] if recode else [])]
    argv = [sys.executable, "-c", SLOWLY, "data", "pack", str(root)]
    process = subprocess.Popen([*argv, str(tmp_path / "out"), *options])
    journal = tmp_path / "out" / record.JOURNAL
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [
        json.loads(line)["entry"] for line in journal.read_bytes().splitlines(keepends=True)[1:] if line[-1:] == b"\n"
    ]
    assert 3 <= len(kept) < 26
    (tmp_path / "out" / ".train-000099.tar.1").write_bytes(b"half")
    settings = {"shard_size": 12_000, "recoding": Recoding(12 if recode else None)}
    packed(root, tmp_path / "out", **settings)
    for entry in kept:
        assert (tmp_path / "out" / entry["url"]).stat().st_mtime_ns == entry["mtime"]
    packed(root, tmp_path / "unbroken", **settings)
    assert shards(tmp_path / "out") == shards(tmp_path / "unbroken")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "unbroken").iterdir()
    )
    assert index.load(tmp_path / "out").fingerprint == index.load(tmp_path / "unbroken").fingerprint


SLOWLY = """
import time
from restrain.data.packing import packing, record
real = record.Journal.add
def add(self, written):
    real(self, written)
    time.sleep(0.05)
record.Journal.add = add
from restrain.cli.main import main
if __name__ == "__main__":
    main()
"""


@pytest.fixture
def begun(pictures, tmp_path, monkeypatch):
    """A set of which two shards are complete."""
    real, calls = packing.write_shard, []

    def failing(job):
        calls.append(job)
        if len(calls) > 2:
            raise WorldError("the disk is gone")
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_shard", failing)
        with pytest.raises(WorldError, match="the disk is gone"):
            packed(pictures, tmp_path / "out", workers=1)
    assert len(shards(tmp_path / "out")) == 2
    return tmp_path / "out"


def test_other_options_are_refused(pictures, begun):
    before = shards(begun)
    with pytest.raises(UserError, match=r"shard size 20000 there, 30000 now, short side none there, 12 now"):
        packed(pictures, begun, shard_size=30_000, recoding=Recoding(12))
    assert shards(begun) == before


def test_a_changed_source_is_refused(pictures, begun):
    (pictures / "train/cat/new.jpg").write_bytes(jpeg(7))
    with pytest.raises(UserError, match="is not what it was when"):
        packed(pictures, begun)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "journal cut"])
def test_a_damaged_shard_is_written_again(pictures, begun, tmp_path, damage):
    victim = begun / min(shards(begun))
    if damage == "cut":
        os.truncate(victim, 1000)
    elif damage == "flipped":
        data = bytearray(victim.read_bytes())
        data[3000] ^= 1
        victim.write_bytes(data)
    elif damage == "gone":
        victim.unlink()
    else:
        journal = begun / record.JOURNAL
        os.truncate(journal, journal.stat().st_size - 5)
    packed(pictures, begun)
    packed(pictures, tmp_path / "unbroken")
    assert shards(begun) == shards(tmp_path / "unbroken")


def test_a_finished_set_is_left_alone(pictures, tmp_path):
    out = tmp_path / "out"
    packed(pictures, out)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    assert packed(pictures, out).before
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()} == before
    with pytest.raises(UserError, match="seed 0 there, 5 now"):
        packed(pictures, out, seed=5)
    os.truncate(out / "train-000001.tar", 512)
    with pytest.raises(WorldError, match=r"train-000001\.tar is damaged"):
        packed(pictures, out)


def test_two_at_a_time_are_refused(pictures, tmp_path):
    (tmp_path / "out").mkdir()
    journal = record.Journal(tmp_path / "out")
    with pytest.raises(WorldError, match="Another process is packing"):
        packed(pictures, tmp_path / "out")
    journal.close()
    packed(pictures, tmp_path / "out")


def test_damaged_notes_are_told(pictures, begun):
    (begun / record.JOURNAL).write_bytes(b"{}\n{]\n")
    with pytest.raises(WorldError, match="journal is damaged"):
        packed(pictures, begun)
    (begun / record.RECORD).write_text("{}")
    with pytest.raises(WorldError, match="json cannot be read"):
        packed(pictures, begun)


def test_space_is_looked_at_first(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    with pytest.raises(WorldError, match=r"has 50\.0 kB free, 11 shard\(s\) need 211\.2 kB"):
        packed(pictures, tmp_path / "out")
    assert not shards(tmp_path / "out")


def test_encoded_anew(tmp_path):
    """Larger images get the short side asked for, smaller ones keep their bytes."""
    root = tmp_path / "src/a"
    root.mkdir(parents=True)
    for name, data in {
        "wide.jpg": jpeg(1, 90, 60),
        "tall.png": jpeg(2, 50, 100, format="PNG"),
        "small.jpg": jpeg(3, 90, 32),
        "cmyk.jpg": jpeg(4, 64, 64, "CMYK"),
    }.items():
        (root / name).write_bytes(data)
    made = packed(tmp_path / "src", tmp_path / "out", recoding=Recoding(32, 80)).record
    found = contents(tmp_path / "out")
    sizes = {}
    for key, files in found.items():
        with Image.open(io.BytesIO(files["jpg"])) as image:
            sizes[key] = (image.format, image.mode, image.size)
    assert sizes == {
        "a/wide": ("JPEG", "RGB", (48, 32)),
        "a/tall": ("JPEG", "RGB", (32, 64)),
        "a/small": ("JPEG", "RGB", (90, 32)),
        "a/cmyk": ("JPEG", "RGB", (32, 32)),
    }
    assert found["a/small"]["jpg"] == (root / "small.jpg").read_bytes()
    assert (made["lossy"], made["encoded_anew"], made["options"]["quality"]) == (True, 3, 80)
    assert made["options"]["encoder"]["pillow"]


def test_extensions_are_those_of_the_content(tmp_path):
    (tmp_path / "src/a").mkdir(parents=True)
    png = jpeg(1, format="PNG")
    (tmp_path / "src/a/one.JPEG").write_bytes(png)  # as ImageNet has one
    (tmp_path / "src/a/two.JPEG").write_bytes(jpeg(2, mode="CMYK"))
    packed(tmp_path / "src", tmp_path / "out")
    assert contents(tmp_path / "out") == {
        "a/one": {"png": png, "cls": b"0"},
        "a/two": {"jpg": jpeg(2, mode="CMYK"), "cls": b"0"},
    }


def test_bad_images(pictures, tmp_path):
    (pictures / "train/dog/3.jpg").write_bytes(jpeg(3)[:200])
    packed(pictures, tmp_path / "as-they-are")
    with pytest.raises(UserError, match=r"dog/3.jpg cannot be decoded: .* --skip-bad"):
        packed(pictures, tmp_path / "checked", recoding=Recoding(check=True))
    made = packed(pictures, tmp_path / "skipped", recoding=Recoding(check=True), skip_bad=True).record
    ((_, key, reason),) = made["skipped"]
    assert key == "dog/3"
    assert "cannot be decoded" in reason
    assert made["splits"]["train"]["samples"] == 74
    found = contents(tmp_path / "skipped", "train-*.tar")
    assert set(contents(tmp_path / "as-they-are", "train-*.tar")) - set(found) == {"dog/3"}
    assert index.load(tmp_path / "skipped").counts.sum() == 74 + 7


def test_the_sources_of_a_run_read_it(pictures, tmp_path):
    packed(pictures, tmp_path / "out")
    source = open_source(section("webdataset", tmp_path / "out"), "train", classes=3)
    labels = [source.read(shard, j).label for shard, n in enumerate(source.counts) for j in range(n)]
    assert np.bincount(labels).tolist() == [30, 25, 20]
    assert open_source(section("webdataset", tmp_path / "out"), "eval", classes=3).counts.sum() == 7


def test_shards_are_packed_again(tmp_path):
    """All files of a sample stay, and its key where it is its own; labels in .json and texts too."""
    members = [
        (f"{n:04d}.{ext}", data)
        for n in range(40)
        for ext, data in (("jpg", jpeg(n)), ("json", json.dumps({"label": n}).encode()), ("note.txt", b"x" * n))
    ]
    (tmp_path / "src").mkdir()
    write_tar(tmp_path / "src/train-0.tar", members[:60])
    write_tar(tmp_path / "src/train-1.tar", members[60:])
    before = contents(tmp_path / "src")
    packed(tmp_path / "src", tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert list(contents(tmp_path / "out")) != list(before)


@pytest.mark.slow
def test_trains_on_what_was_packed(shared_data, tmp_path):
    from tests import worlds

    packed(shared_data / "imagenet-sample", tmp_path / "out", shard_size=5_000_000)
    argv = ["train", "imagenet_resnet50", f"data.root={tmp_path / 'out'}", "--run", str(tmp_path / "run")]
    argv += ["model.name=resnet18", "batch.global=16", "batch.group=8", "length=3st", "evaluate.every=3st"]
    argv += ["resolution.train=32", "resolution.eval=32", "resolution.eval_resize=32", "expect=null", "precision=fp32"]
    argv += ["schedule.at=[1st,2st]", "track.wandb.mode=disabled"]
    ended = worlds.start(argv, 1, tmp_path / "logs").wait()
    assert ended.codes == [0], ended.text
    assert "300 training samples" in ended.text
    assert "Indexing" not in ended.text


def test_the_command(pictures, tmp_path, capsys):
    from restrain.cli.main import run

    argv = ["data", "pack", str(pictures), str(tmp_path / "out"), "--shard-size", "0.02MB"]
    assert run(argv) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[1].startswith("Writing 11 shard(s), 211.2 kB; ")
    assert said[2].startswith("train: 75 samples, 10 shard(s), ")
    assert said[4:] == [
        f"3 classes, in the order of their numbers: {tmp_path / 'out/classes.txt'}",
        f"Next: restrain train RECIPE data.name=webdataset data.root={tmp_path / 'out'} model.classes=3",
    ]
    assert run(argv) == 0
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'out'} is finished, nothing is to be done:\n")
    assert run([*argv[:3], str(tmp_path / "small"), "--short-side", "12", "--workers", "1"]) == 0
    assert capsys.readouterr().err.startswith("LOSSY: images whose short side is above 12 pixels are encoded anew")
