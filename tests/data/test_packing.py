"""restrain data pack: every layout, the same bytes whatever happens, the index of a fresh scan, nothing run or lost."""

import csv
import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restrain.cli.main import run
from restrain.data import index
from restrain.data.indexing import index_shards, match_shards
from restrain.data.packing.pickles import read_plain
from restrain.data.sets import open_source
from restrain.errors import WorldError

from .archives import WNIDS, tar_of, write_cifar, write_imagenet
from .making import jpeg, section, write_folder, write_shards


def pack(source: Path, target: Path, *words: str) -> int:
    return run(["data", "pack", str(source), str(target), *words])


def shards(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def samples(folder: Path, pattern: str = "train-*.tar") -> dict[str, tuple[bytes, int]]:
    """Key -> (stored image, label)."""
    source = open_source(section("webdataset", folder, train=pattern), "train")
    assert source is not None
    found = {}
    for shard, count in enumerate(source.counts):
        for j in range(int(count)):
            sample = source.read(shard, j)
            found[sample.key] = (bytes(sample.data), sample.label)
    assert len(found) == source.counts.sum()
    return found


@pytest.fixture
def pictures(tmp_path):
    return write_folder(tmp_path / "pictures", {"b": 5, "Z": 3, "ä": 2, "a": 4})


def test_a_folder_keeps_every_byte(pictures, tmp_path):
    assert pack(pictures, tmp_path / "out", "--shard-size", "10kB") == 0
    classes = ["Z", "a", "b", "ä"]
    wanted = {
        f"{name}/{path.stem}": (path.read_bytes(), number)
        for number, name in enumerate(classes)
        for path in (pictures / name).iterdir()
    }
    assert samples(tmp_path / "out") == wanted
    assert (tmp_path / "out" / "classes.txt").read_text().split() == classes
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.txt", "restrain-index.bin", "restrain-index.json", "restrain-pack.json",
        *sorted(shards(tmp_path / "out")),
    ]  # fmt: skip
    assert len(shards(tmp_path / "out")) > 2


def test_the_same_bytes_whatever_the_workers(pictures, tmp_path):
    for name, workers in (("one", "1"), ("four", "4")):
        assert pack(pictures, tmp_path / name, "--shard-size", "8kB", "--workers", workers) == 0
    assert shards(tmp_path / "one") == shards(tmp_path / "four")
    assert (tmp_path / "one/restrain-pack.json").read_text() == (tmp_path / "four/restrain-pack.json").read_text()
    assert pack(pictures, tmp_path / "other", "--shard-size", "8kB", "--seed", "1") == 0
    assert shards(tmp_path / "other") != shards(tmp_path / "one")
    assert samples(tmp_path / "other") == samples(tmp_path / "one")


def test_golden(tmp_path):
    """Frozen: a set that is packed again elsewhere must not become another set."""
    for name in ("x", "y"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "in" / name / f"{i}.jpg").write_bytes(b"\xff\xd8\xff" + bytes([i]) * 40)
    assert pack(tmp_path / "in", tmp_path / "out") == 0
    assert shards(tmp_path / "out") == {
        "train-000000.tar": "d732efa74d6692260ada6032aeead7f2a388721f55c030b6dbe6deb9ca6c4a86"
    }


def test_the_index_is_that_of_a_fresh_scan(pictures, tmp_path):
    out = tmp_path / "out"
    assert pack(pictures, out, "--shard-size", "8kB") == 0
    files = {name: (out / name).read_bytes() for name in ("restrain-index.json", index.TABLE)}
    for name in files:
        (out / name).unlink()
    index_shards(out, match_shards(out, "*.tar"))
    assert {name: (out / name).read_bytes() for name in files} == files


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_webdataset_reads_it(pictures, tmp_path):
    import webdataset

    assert pack(pictures, tmp_path / "out") == 0
    stored = webdataset.WebDataset(str(tmp_path / "out/train-000000.tar"), shardshuffle=False)
    found = {sample["__key__"]: (sample["jpg"], int(sample["cls"])) for sample in stored}
    assert found == samples(tmp_path / "out")


def test_splits_below_a_folder(tmp_path):
    write_folder(tmp_path / "in" / "train", {"a": 3, "b": 2})
    write_folder(tmp_path / "in" / "validation", {"a": 1, "b": 1})
    assert pack(tmp_path / "in", tmp_path / "out") == 0
    assert sorted(shards(tmp_path / "out")) == ["train-000000.tar", "val-000000.tar"]
    assert len(samples(tmp_path / "out", "val-*.tar")) == 2
    write_folder(tmp_path / "odd" / "train", {"a": 3})
    write_folder(tmp_path / "odd" / "val", {"c": 1})
    assert pack(tmp_path / "odd", tmp_path / "out2") == 2


def test_one_split_after_the_other(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / split, {"a": 3, "b": 2})
        assert pack(tmp_path / split, tmp_path / "out", "--split", split) == 0
    assert index.load(tmp_path / "out").names == ["train-000000.tar", "val-000000.tar"]
    assert set(json.loads((tmp_path / "out/restrain-pack.json").read_text())["splits"]) == {"train", "val"}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "metadata"])
def test_lists(tmp_path, form):
    write_folder(tmp_path, {"images": 6})
    rows = [{"file_name": f"images/{i}.jpg", "label": ("cat", "dog")[i % 2]} for i in range(6)]
    name = "list" if form != "metadata" else "metadata"
    path = tmp_path / f"{name}.{form if form != 'metadata' else 'jsonl'}"
    if form == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "label"])
            writer.writeheader()
            writer.writerows(rows)
    elif form == "parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pack(tmp_path if form == "metadata" else path, tmp_path / "out") == 0
    wanted = {f"images/{i}": ((tmp_path / f"images/{i}.jpg").read_bytes(), i % 2) for i in range(6)}
    assert samples(tmp_path / "out") == wanted
    assert (tmp_path / "out/classes.txt").read_text().split() == ["cat", "dog"]


def test_parquet_that_holds_the_images(tmp_path):
    from pyarrow import Table, parquet

    splits = ("train", "train", "train", "test", "test")
    rows = [{"image": {"bytes": jpeg(i), "path": None}, "label": 7 - i, "split": s} for i, s in enumerate(splits)]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "set.parquet")
    assert pack(tmp_path / "set.parquet", tmp_path / "out") == 0
    assert samples(tmp_path / "out") == {f"{i:09d}": (jpeg(i), 7 - i) for i in range(3)}
    assert samples(tmp_path / "out", "test-*.tar") == {f"{i:09d}": (jpeg(i), 7 - i) for i in (3, 4)}
    assert not (tmp_path / "out/.restrain-pack").exists()


def test_shards_are_mixed_again(tmp_path):
    write_shards(tmp_path / "in", 3, 8)
    assert pack(tmp_path / "in", tmp_path / "out", "--shard-size", "20kB") == 0
    assert samples(tmp_path / "out") == samples(tmp_path / "in")
    assert shards(tmp_path / "out") != shards(tmp_path / "in")
    first = open_source(section("webdataset", tmp_path / "out"), "train")
    assert [first.read(0, j).key for j in range(4)] != [f"s{j:05d}" for j in range(4)]


def test_imagenet_from_its_archives(tmp_path):
    train, val = write_imagenet(tmp_path / "in")
    assert pack(tmp_path / "in", tmp_path / "out") == 0
    classes = sorted(WNIDS)
    assert (tmp_path / "out/classes.txt").read_text().split() == classes
    for keys, pattern in ((train, "train-*.tar"), (val, "val-*.tar")):
        found = samples(tmp_path / "out", pattern)
        assert {key: classes[label] for key, (_, label) in found.items()} == keys
    assert samples(tmp_path / "out")["n03000001_10"][0] == jpeg(1)
    assert samples(tmp_path / "out", "val-*.tar")["ILSVRC2012_val_00000003"][0] == jpeg(502)
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == sorted(
        ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"]
    )


def test_imagenet_cut_short(tmp_path, capsys):
    write_imagenet(tmp_path / "in")
    path = tmp_path / "in/ILSVRC2012_img_train.tar"
    whole = path.read_bytes()
    for cut in range(512, len(whole) - 10240, 4096):
        path.write_bytes(whole[:cut])
        assert pack(tmp_path / "in", tmp_path / "out") == 1, cut
    assert "cut short" in capsys.readouterr().err
    path.write_bytes(whole)
    (tmp_path / "in/ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert pack(tmp_path / "in", tmp_path / "out") == 2


def test_cifar_without_running_its_pickles(tmp_path):
    pixels = write_cifar(tmp_path)
    assert pack(tmp_path / "cifar-10-python.tar.gz", tmp_path / "out") == 0
    found = {**samples(tmp_path / "out"), **samples(tmp_path / "out", "val-*.tar")}
    assert len(found) == 18
    for i in range(18):
        data, label = found[f"picture_s_{i:06d}"]
        assert label == i % 10
        assert (np.asarray(Image.open(io.BytesIO(data))) == pixels[i]).all()
    assert (tmp_path / "out/classes.txt").read_text().split()[3] == "class3"


class Hostile:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_hostile_pickles_run_nothing(tmp_path, protocol, capsys):
    data = pickle.dumps({b"data": Hostile(str(tmp_path / "evil"))}, protocol)
    write_cifar(tmp_path, hostile=data)
    assert pack(tmp_path / "cifar-10-python.tar.gz", tmp_path / "out") == 1
    assert not (tmp_path / "evil").exists()
    assert "data_batch_1 is no pickle of plain data" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_pickles_of_python_3(protocol):
    value = {"a": [1, 2, (3, "x", None, True)], b"bytes": b"\x00\xff" * 300, "n": -5, "big": 1 << 40, "f": 0.5}
    assert read_plain(pickle.dumps(value, protocol), "here") == value


def test_damaged_pickles_are_an_error():
    data = pickle.dumps({"a": [1, 2, 3], "b": "x" * 300}, 2)
    for cut in range(len(data) - 1):
        with pytest.raises(WorldError):
            read_plain(data[:cut], "here")


def test_smaller_images(tmp_path):
    for i, (width, height) in enumerate([(100, 60), (60, 100), (20, 16), (40, 40)]):
        (tmp_path / "in/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/a/{i}.png").write_bytes(jpeg(i, width, height, format="PNG"))
    assert pack(tmp_path / "in", tmp_path / "out", "--short-side", "32", "--quality", "80") == 0
    found = {key: Image.open(io.BytesIO(data)) for key, (data, _) in samples(tmp_path / "out").items()}
    assert {key: image.size for key, image in found.items()} == {
        "a/0": (53, 32), "a/1": (32, 53), "a/2": (20, 16), "a/3": (32, 32)
    }  # fmt: skip
    assert found["a/2"].format == "PNG"  # small enough: as it was
    assert found["a/0"].format == "JPEG"
    record = json.loads((tmp_path / "out/restrain-pack.json").read_text())["splits"]["train"]
    assert record["encoding"] == {"short_side": 32, "quality": 80, "check": False}
    assert record["library"].startswith("pil ")


def test_content_decides_the_ending(tmp_path):
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/x.JPEG").write_bytes(jpeg(1, format="PNG"))
    assert pack(tmp_path / "in", tmp_path / "out") == 0
    assert b"a/x.png" in (tmp_path / "out/train-000000.tar").read_bytes()


def test_bad_images(pictures, tmp_path, capsys):
    (pictures / "a/1.jpg").write_bytes(jpeg(3)[:300])
    assert pack(pictures, tmp_path / "kept") == 0  # bytes are kept as they are
    assert pack(pictures, tmp_path / "out", "--check", "--shard-size", "4kB") == 1
    assert "image a/1 cannot be decoded" in capsys.readouterr().err
    assert pack(pictures, tmp_path / "left", "--skip-bad") == 0
    assert "1 left out" in capsys.readouterr().out
    assert "a/1" not in samples(tmp_path / "left")
    assert len(samples(tmp_path / "left")) == 13
    (pictures / "a/1.jpg").write_bytes(jpeg(3, width=21))  # restored as another image: the listing is another
    assert pack(pictures, tmp_path / "out", "--check", "--shard-size", "4kB") == 2
    assert "of another packing" in capsys.readouterr().err


def test_a_second_call_writes_nothing(pictures, tmp_path, capsys):
    assert pack(pictures, tmp_path / "out") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert pack(pictures, tmp_path / "out") == 0
    assert "packed already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert pack(pictures, tmp_path / "out", "--seed", "5") == 2
    assert "seed: 0 there, 5 now" in capsys.readouterr().err


def test_what_was_written_is_kept_after_an_error(pictures, tmp_path):
    out = tmp_path / "out"
    (pictures / "a/1.jpg").write_bytes(whole := jpeg(3))
    (pictures / "a/1.jpg").write_bytes(b"\xff\xd8\xff" + bytes(len(whole) - 3))
    assert pack(pictures, out, "--check", "--shard-size", "4kB", "--workers", "1") == 1
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (pictures / "a/1.jpg").write_bytes(whole)
    assert pack(pictures, out, "--check", "--shard-size", "4kB") == 0
    assert written
    assert all((out / name).stat().st_mtime_ns == time for name, time in written.items())
    assert pack(pictures, tmp_path / "straight", "--check", "--shard-size", "4kB") == 0
    assert shards(out) == shards(tmp_path / "straight")


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    write_folder(tmp_path / "in", {"a": 60, "b": 60})
    words = ["data", "pack", str(tmp_path / "in")]
    options = ["--shard-size", "6kB", "--short-side", "8"]
    assert run([*words, str(tmp_path / "straight"), *options]) == 0
    out = tmp_path / "out"
    for kill in range(4):
        child = subprocess.Popen([sys.executable, "-m", "restrain", *words, str(out), *options])
        wanted, until = 5 * (kill + 1), time.monotonic() + 60
        while child.poll() is None and len(list(out.glob("*.tar"))) < wanted and time.monotonic() < until:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert run([*words, str(out), *options]) == 0
    assert shards(out) == shards(tmp_path / "straight")
    assert not list(out.glob(".*"))


def test_one_process_at_a_time(pictures, tmp_path, capsys):
    import fcntl

    (tmp_path / "out/.restrain-pack").mkdir(parents=True)
    with open(tmp_path / "out/.restrain-pack/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pack(pictures, tmp_path / "out") == 2
    assert "is being packed by another process" in capsys.readouterr().err


def test_names_that_cannot_be(tmp_path, capsys):
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/x.jpg").write_bytes(jpeg(1))
    (tmp_path / "in/a/x.png").write_bytes(jpeg(1, format="PNG"))
    assert pack(tmp_path / "in", tmp_path / "out") == 2
    assert "would both be sample 'a/x'" in capsys.readouterr().err
    (tmp_path / "in/a/x.png").unlink()
    (tmp_path / "in/a").rename(tmp_path / "in/__y__")
    assert pack(tmp_path / "in", tmp_path / "out") == 2
    assert "Rename it" in capsys.readouterr().err
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "a.tar").write_bytes(tar_of([("../../x.jpg", jpeg(1)), ("../../x.cls", b"0")]))
    assert pack(evil, tmp_path / "out3") == 2
    assert not (tmp_path.parent / "x.jpg").exists()


def test_long_and_foreign_names(tmp_path):
    (tmp_path / "in" / ("d" * 90)).mkdir(parents=True)
    (tmp_path / "in" / ("d" * 90) / f"{'é' * 60}.jpg").write_bytes(jpeg(1))
    (tmp_path / "in" / ("d" * 90) / f"{'f' * 100}.jpg").write_bytes(jpeg(2))
    assert pack(tmp_path / "in", tmp_path / "out") == 0
    assert sorted(key.split("/")[1] for key in samples(tmp_path / "out")) == ["f" * 100, "é" * 60]


@pytest.mark.slow
def test_a_run_on_a_packed_set(tmp_path):
    write_imagenet(tmp_path / "in", images=12)
    assert pack(tmp_path / "in", tmp_path / "set") == 0
    words = [f"data.root={tmp_path / 'set'}", "model.name=resnet18", "model.classes=3", "length=2st"]
    words += ["batch.global=8", "batch.group=8", "resolution.train=32", "resolution.eval=32"]
    words += ["resolution.eval_resize=36", "schedule.at=[1ep]"]
    assert run(["train", "imagenet_resnet50", *words, "--run", str(tmp_path / "run")]) == 0
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/count"] == 7
