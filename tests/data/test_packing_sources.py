"""Every layout that can be packed: what is in it comes out, and what is odd in it is refused by name."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restrain.data import indexing
from restrain.data.indexing import Reporter
from restrain.data.manifest import MANIFEST
from restrain.data.packing.packing import Settings, pack
from restrain.data.packing.source import Source, recognise
from restrain.data.packing.table import Columns
from restrain.errors import UserError, WorldError
from tests.data import originals
from tests.data.making import jpeg, write_folder, write_shards, write_tar
from tests.data.test_packing import contents, packed


def pairs(folder: Path, pattern: str = "*.tar") -> dict[str, tuple[bytes, int]]:
    """Key -> (image, label)."""
    found = contents(folder, pattern)
    return {key: (next(v for k, v in files.items() if k != "cls"), int(files["cls"])) for key, files in found.items()}


# ------------------------------------------------------------------------------------------------------- ImageNet


def test_imagenet(tmp_path):
    expected = originals.small_imagenet(tmp_path / "src")
    assert recognise(tmp_path / "src", None) == "imagenet"
    before = {path.name: path.read_bytes() for path in (tmp_path / "src").iterdir()}
    packed(tmp_path / "src", tmp_path / "out")
    train, val = pairs(tmp_path / "out", "train-*.tar"), pairs(tmp_path / "out", "val-*.tar")
    assert (len(train), len(val)) == (32, 8)
    assert train | val == expected
    classes = (tmp_path / "out/classes.txt").read_text().split()
    assert classes == ["n01000001", "n01000002", "n02000003", "n02000004", "n03000005"]
    assert all(key.startswith(classes[label]) for key, (_, label) in train.items())
    assert [val[f"ILSVRC2012_val_{n:08d}"][1] for n in range(1, 9)] == [4, 2, 1, 2, 3, 0, 3, 4]
    assert {path.name: path.read_bytes() for path in (tmp_path / "src").iterdir()} == before


def test_imagenet_of_photographs(photographs, tmp_path):
    ids = {f"n{10**7 + 37 * n % 100:08d}": n + 1 for n in range(25)}
    expected = originals.imagenet(tmp_path / "src", photographs, ids, [n % 25 + 1 for n in range(30)])
    packed(tmp_path / "src", tmp_path / "out", shard_size=1_000_000)
    assert pairs(tmp_path / "out") == expected


def test_imagenet_of_one_archive(tmp_path):
    originals.small_imagenet(tmp_path / "src")
    (tmp_path / "src" / originals.TRAIN).rename(tmp_path / "train.tar")
    packed(tmp_path / "src", tmp_path / "val")
    assert len(pairs(tmp_path / "val")) == 8
    (tmp_path / "train.tar").rename(tmp_path / "src" / originals.TRAIN)
    (tmp_path / "src" / originals.DEVKIT).unlink()
    with pytest.raises(UserError, match="it holds the labels of ILSVRC2012_img_val"):
        packed(tmp_path / "src", tmp_path / "out")
    (tmp_path / "src" / originals.VAL).unlink()
    packed(tmp_path / "src", tmp_path / "train")
    assert len(pairs(tmp_path / "train")) == 32


def cut_inner(folder):
    """A class archive that was cut short when the outer one was made."""
    inner = originals.in_tar({"n01000001_1.JPEG": jpeg(1), "n01000001_2.JPEG": jpeg(2)})
    originals.tar(folder / originals.TRAIN, {"n01000001.tar": inner[:900]})


def cut_between(folder):
    inner = originals.in_tar({"n01000001_1.JPEG": b"x" * 512, "n01000001_2.JPEG": jpeg(2)})
    originals.tar(folder / originals.TRAIN, {"n01000001.tar": inner[:1024]})


def cut_outer(folder):
    os.truncate(folder / originals.TRAIN, (folder / originals.TRAIN).stat().st_size // 2)


def damaged_header(folder):
    path = folder / originals.VAL
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        data[archive.getmembers()[3].offset + 5] ^= 1
    path.write_bytes(data)


def other_member(folder):
    originals.tar(folder / originals.TRAIN, {"evil.sh": b"rm"})


def fewer_labels(folder):
    originals.devkit(folder / originals.DEVKIT, [1, 2, 3], originals.meta_mat(originals.IDS))


def unknown_id(folder):
    originals.devkit(folder / originals.DEVKIT, [1, 2, 3, 4, 5, 6, 7, 77], originals.meta_mat(originals.IDS))


def no_mat(folder):
    originals.devkit(folder / originals.DEVKIT, [1] * 8, b"MATLAB 5.0" + bytes(300))


def pickled_mat(folder):
    originals.devkit(folder / originals.DEVKIT, [1] * 8, b"cos\nsystem\n(S'touch evil'\ntR.")


def other_classes(folder):
    originals.devkit(folder / originals.DEVKIT, [1] * 8, originals.meta_mat({**originals.IDS, "n04000000": 6}))


def no_devkit(folder):
    (folder / originals.DEVKIT).write_bytes(b"<html>404</html>")


def gzipped(folder):
    (folder / originals.VAL).write_bytes(b"\x1f\x8b" + bytes(600))


BROKEN = {
    cut_inner: r"n01000001\.tar in .*img_train\.tar ends inside member n01000001_1",
    cut_between: r"n01000001\.tar in .*has no end-of-archive mark",
    cut_outer: "unexpected end of data|ends inside member|has no end-of-archive mark",
    damaged_header: r"img_val\.tar has no end-of-archive mark where its members end",
    other_member: r"member evil\.sh is no class archive",
    fewer_labels: "is not one of ILSVRC2012_val_00000001 to 00000003",
    unknown_id: "has the id 6, which data/meta.mat does not know",
    no_mat: r"data/meta\.mat cannot be read",
    pickled_mat: r"data/meta\.mat cannot be read",
    other_classes: "have not the same classes: n04000000 in one only",
    no_devkit: r"is no readable \.tar\.gz",
    gzipped: r"img_val\.tar is compressed \(gzip\)",
}


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.__name__)
def test_imagenet_that_is_not_whole(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    originals.small_imagenet(tmp_path / "src")
    fault(tmp_path / "src")
    with pytest.raises(WorldError, match=BROKEN[fault]):
        packed(tmp_path / "src", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "evil").exists()


# ---------------------------------------------------------------------------------------------------------- CIFAR


@pytest.mark.parametrize("kind", ["archive", "folder", "hundred"])
def test_cifar(tmp_path, kind):
    source = tmp_path / "src"
    expected = originals.cifar100(source) if kind == "hundred" else originals.cifar(source)
    if kind == "archive":
        source = source / "cifar-10-python.tar.gz"
    elif kind == "folder":
        with tarfile.open(source / "cifar-10-python.tar.gz") as archive:
            archive.extractall(source, filter="data")
        source = source / "cifar-10-batches-py"
    assert recognise(source, None) == "cifar"
    packed(source, tmp_path / "out")
    for split, samples in expected.items():
        found = pairs(tmp_path / "out", f"{split}-*.tar")
        assert len(found) == len(samples)
        for key, (pixels, label) in zip(sorted(found), samples, strict=True):
            image, number = found[key]
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), pixels)
            assert number == label
    names = (tmp_path / "out/classes.txt").read_text().split()
    assert names == ([f"f{n:02d}" for n in range(100)] if kind == "hundred" else [f"class{n}" for n in range(10)])
    assert not list((tmp_path / "out").glob(".restrain*"))


# ---------------------------------------------------------------------------------------------------------- lists


@pytest.fixture
def images(tmp_path):
    (tmp_path / "src/in").mkdir(parents=True)
    for n in range(20):
        (tmp_path / f"src/in/{n:02d}.v1.jpg").write_bytes(jpeg(n))
    return tmp_path / "src"


def expected_of(labels) -> dict[str, tuple[bytes, int]]:
    return {f"in/{n:02d}%2Ev1": (jpeg(n), label) for n, label in enumerate(labels)}


def write_csv(path: Path, header: list[str], rows) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_csv_of_class_names(images, tmp_path):
    write_csv(images / "list.csv", ["path", "label"], [(f"in/{n:02d}.v1.jpg", "zgül"[n % 4]) for n in range(20)])
    packed(images / "list.csv", tmp_path / "out")
    classes = sorted("zgül", key=os.fsencode)
    assert (tmp_path / "out/classes.txt").read_text().split() == classes
    assert pairs(tmp_path / "out") == expected_of([classes.index("zgül"[n % 4]) for n in range(20)])


def test_csv_of_numbers_and_other_columns(images, tmp_path):
    write_csv(images / "list.csv", ["where", "what"], [(f"{n:02d}.v1.jpg", n % 7) for n in range(20)])
    source = Source(images / "list.csv", "list", "val", Columns("where", "what", images / "in"))
    pack(source, tmp_path / "out", Settings())
    assert {key: label for key, (_, label) in pairs(tmp_path / "out", "val-*.tar").items()} == {
        f"{n:02d}%2Ev1": n % 7 for n in range(20)
    }
    assert not (tmp_path / "out/classes.txt").exists()


def test_lists_of_splits(images, tmp_path):
    rows = [(f"in/{n:02d}.v1.jpg", n % 3) for n in range(20)]
    write_csv(images / "train.csv", ["path", "label"], rows[:15])
    write_csv(images / "val.csv", ["path", "label"], rows[15:])
    packed(images, tmp_path / "out")
    assert len(pairs(tmp_path / "out", "train-*.tar")) == 15
    assert pairs(tmp_path / "out") == expected_of([n % 3 for n in range(20)])


@pytest.mark.parametrize("kind", ["path", "bytes", "hugging face"])
def test_parquet(images, tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    labels = [n % 4 for n in range(20)]
    column = {
        "path": [f"in/{n:02d}.v1.jpg" for n in range(20)],
        "bytes": [jpeg(n) for n in range(20)],
        "hugging face": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(20)],
    }[kind]
    name = {"path": "path", "bytes": "image", "hugging face": "image"}[kind]
    file = images / "train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.table({name: column, "label": labels}), file, row_group_size=7)
    packed(file, tmp_path / "out")
    found = pairs(tmp_path / "out", "train-*.tar")
    if kind == "path":
        assert found == expected_of(labels)
    else:
        assert found == {f"{file.stem}/{n + 1:08d}": (jpeg(n), n % 4) for n in range(20)}
    assert not list((tmp_path / "out").glob(".restrain*"))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("where", ["splits", "root"])
def test_hugging_face_imagefolder(tmp_path, kind, where):
    expected, lists = {}, {}
    for n in range(18):
        split = "validation" if n % 3 == 0 else "train"
        path = tmp_path / "src" / split / f"{n:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n))
        name = path.name if where == "splits" else f"{split}/{path.name}"
        folder = path.parent if where == "splits" else tmp_path / "src"
        lists.setdefault(folder, []).append({"file_name": name, "text": "a caption", "label": "ba"[n % 2]})
        expected[os.path.splitext(name)[0]] = (jpeg(n), 1 - n % 2)
    for folder, records in lists.items():
        path = folder / f"metadata.{kind}"
        if kind == "csv":
            write_csv(path, list(records[0]), [record.values() for record in records])
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        else:
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(records), path)
    assert recognise(tmp_path / "src", None) == "imagefolder"
    packed(tmp_path / "src", tmp_path / "out")
    assert len(pairs(tmp_path / "out", "val-*.tar")) == 6
    assert pairs(tmp_path / "out") == expected


ROWS = {
    "../secret.jpg": "leads out of",
    "/etc/passwd": "leads out of",
    "in/../../secret.jpg": "leads out of",
    "in/none.jpg": "No such file",
    "": "path is empty",
    "in/00.v1.jpg": "would both be sample 'in/00%2Ev1'",
    "in/a\0b.jpg": "null byte|NUL",
}


@pytest.mark.parametrize("path", ROWS)
def test_hostile_rows(images, tmp_path, path):
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    rows = [("in/00.v1.jpg", "a"), (path, "a")]
    write_csv(images / "list.csv", ["path", "label"], rows)
    with pytest.raises((UserError, WorldError), match=ROWS[path]):
        packed(images / "list.csv", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


# --------------------------------------------------------------------------------------------- folders and shards


def test_links_are_followed_and_keyed_by_their_own_names(tmp_path):
    write_folder(tmp_path / "store", {"x": 3})
    (tmp_path / "src/a").mkdir(parents=True)
    (tmp_path / "src/a/one.jpg").symlink_to(tmp_path / "store/x/0.jpg")
    (tmp_path / "src/b").symlink_to(tmp_path / "store/x")
    packed(tmp_path / "src", tmp_path / "out")
    assert {key: label for key, (_, label) in pairs(tmp_path / "out").items()} == {
        "a/one": 0, "b/0": 1, "b/1": 1, "b/2": 1,
    }  # fmt: skip


def test_a_class_called_train(tmp_path):
    write_folder(tmp_path / "src", {"bus": 2, "train": 3})
    packed(tmp_path / "src", tmp_path / "out")
    assert (tmp_path / "out/classes.txt").read_text() == "bus\ntrain\n"
    assert len(pairs(tmp_path / "out", "train-*.tar")) == 5


def test_what_is_beside_the_splits_is_told(tmp_path):
    write_folder(tmp_path / "src/train", {"a": 2})
    write_folder(tmp_path / "src/extra", {"b": 3})
    said = []
    packed(tmp_path / "src", tmp_path / "out", reporter=Reporter(said.append))
    assert "Left out, as no splits: extra" in said
    assert len(pairs(tmp_path / "out")) == 2


def test_a_class_of_val_that_train_has_not(tmp_path):
    write_folder(tmp_path / "src/train", {"a": 2, "b": 1})
    write_folder(tmp_path / "src/val", {"a": 2, "c": 1})
    with pytest.raises(UserError, match=r"src/val/c is a class that .*src/train has not"):
        packed(tmp_path / "src", tmp_path / "out")


def test_odd_names(tmp_path):
    """Names that webdataset would cut, skip or not read come back whole."""
    names = ["a.b.c", "__meta__", "100%", "naïve", "x" * 200, "tab\there", "dots.."]
    for n, name in enumerate(names):
        folder = tmp_path / "src" / ("__cls__" if n % 2 else "c.d")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes(jpeg(n))
    packed(tmp_path / "src", tmp_path / "out")
    found = pairs(tmp_path / "out")
    assert sorted(image for image, _ in found.values()) == sorted(jpeg(n) for n in range(len(names)))
    made = (tmp_path / "out" / MANIFEST).read_bytes()
    (tmp_path / "out" / MANIFEST).unlink()
    indexing.index_shards(tmp_path / "out", ["train-000000.tar"])
    assert (tmp_path / "out" / MANIFEST).read_bytes() == made
    assert {"c.d/a%2Eb%2Ec", "%5F_cls__/%5F_meta__", "c.d/100%25", "%5F_cls__/naïve"} <= set(found)


def test_keys_of_a_shard_only(tmp_path):
    """Where every shard counts from zero, keys get the name of their shard."""
    (tmp_path / "src").mkdir()
    for shard in range(3):
        write_tar(tmp_path / f"src/part-{shard}.tar", [("0.jpg", jpeg(shard)), ("0.cls", b"%d" % shard)])
    packed(tmp_path / "src", tmp_path / "out")
    assert pairs(tmp_path / "out", "train-*.tar") == {f"part-{n}/0": (jpeg(n), n) for n in range(3)}


def test_compressed_shards_and_hostile_members(tmp_path):
    (tmp_path / "src").mkdir()
    with tarfile.open(tmp_path / "src/val-0.tar.gz", "w:gz") as archive:
        for name, data in [("../up.jpg", jpeg(1)), ("../up.cls", b"3"), ("/abs.jpg", jpeg(2)), ("/abs.cls", b"4")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    packed(tmp_path / "src", tmp_path / "out")
    assert pairs(tmp_path / "out", "val-*.tar") == {"%2E%2E/up": (jpeg(1), 3), "%/abs": (jpeg(2), 4)}


def test_recognised(tmp_path):
    write_folder(tmp_path / "folder", {"a": 1})
    write_shards(tmp_path / "shards", 1, 2)
    assert recognise(tmp_path / "folder", None) == "folder"
    assert recognise(tmp_path / "shards", None) == "shards"
    with pytest.raises(UserError, match=r"is no source of the kind 'imagenet': it needs ILSVRC2012"):
        recognise(tmp_path / "folder", "imagenet")
    with pytest.raises(UserError, match="Did you mean 'shards'"):
        recognise(tmp_path / "folder", "shard")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds nothing that can be packed"):
        recognise(tmp_path / "empty", None)
