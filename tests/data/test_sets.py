"""What a recipe's data section opens."""

import numpy as np
import pytest

from restrain.data.indexing import Reporter
from restrain.data.manifest import MANIFEST
from restrain.data.reader import BadSample
from restrain.data.sets import open_source
from restrain.errors import UserError, WorldError
from tests.data.making import jpeg, section, write_folder, write_shards, write_tar


def test_digits():
    train, held_out = (open_source(section("digits"), split, classes=10) for split in ("train", "eval"))
    assert (train.counts.tolist(), held_out.counts.tolist()) == ([1437], [360])
    labels = held_out.rows(np.zeros(360, int), np.arange(360))[1]
    assert np.bincount(labels).tolist() == [36] * 10
    images, labels, crcs = train.rows(np.zeros(3, int), np.array([5, 5, 1000]))
    assert images.shape == (3, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.max() == 255
    sample = train.read(0, 1000)
    assert (sample.label, sample.crc) == (labels[2], crcs[2]) == (labels[2], train.crcs(0)[1000])
    assert np.array_equal(sample.data, images[2])
    assert train.fingerprint.startswith("ec113266c3daf36e")  # frozen: a resumed run compares it
    with pytest.raises(UserError, match=r"model.classes=9"):
        open_source(section("digits"), "train", classes=9)


def test_shards(tmp_path):
    write_shards(tmp_path, 2, 3)
    said = []
    source = open_source(section("webdataset", tmp_path), "train", classes=5, reporter=Reporter(said.append))
    assert said
    assert (tmp_path / MANIFEST).exists()
    sample = source.read(1, 2)
    assert (sample.key, sample.label, sample.data) == ("s00005", 0, jpeg(5))
    assert sample.crc == source.crcs(1)[2]
    assert source.sample(1, 2) == {
        "__key__": "s00005",
        "__url__": str(tmp_path / "train-001.tar"),
        "cls": b"0",
        "jpg": jpeg(5),
    }
    assert open_source(section("webdataset", tmp_path), "eval") is None
    assert open_source(section("webdataset", tmp_path, eval=None), "eval") is None
    with pytest.raises(UserError, match=r"Nothing in .* matches data\.eval='test-\*\.tar'\."):
        open_source(section("webdataset", tmp_path, eval="test-*.tar"), "eval")
    source.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"jpg": b"x"}, r"label missing: neither \.cls nor \.json among its files \(\.jpg\)"),
        ({"jpg": b"x", "cls": b"cat"}, "label missing: its .cls holds b'cat'"),
        ({"jpg": b"x", "json": b'{"labels": 1}'}, "label missing: its .json has no whole number"),
        ({"jpg": b"x", "json": b"{"}, "label missing: its .json is not valid JSON"),
        ({"jpg": b"x", "cls": b"1_0"}, "label missing: its .cls holds b'1_0'"),
        ({"txt": b"x", "cls": b"1"}, r"no image among its files \(\.txt, \.cls\)"),
    ],
)
def test_samples_without_what_they_need(tmp_path, fields, message):
    write_tar(tmp_path / "train-0.tar", [(f"k.{ext}", data) for ext, data in fields.items()])
    with pytest.raises(BadSample, match=rf"sample 0 \(k\) of train-0\.tar: {message}"):
        open_source(section("webdataset", tmp_path), "train", classes=5).read(0, 0)


def test_labels(tmp_path):
    fields = [{"cls": b" 3\n"}, {"json": b'{"label": 4}'}, {"json": b'{"cls": 2}'}, {"cls": b"5"}, {"cls": b"-1"}]
    members = [(f"k{n}.{e}", d) for n, one in enumerate(fields) for e, d in {"png": b"x", **one}.items()]
    write_tar(tmp_path / "train-0.tar", members)
    source = open_source(section("webdataset", tmp_path), "train", classes=5)
    assert [source.read(0, j).label for j in range(3)] == [3, 4, 2]
    with pytest.raises(UserError, match=r"sample k3 of train-0.tar has label 5, and model.classes=5 allows 0 to 4"):
        source.read(0, 3)
    with pytest.raises(UserError, match="label -1"):
        source.read(0, 4)


def test_each_flipped_byte_spoils_its_sample_alone(tmp_path):
    path = write_shards(tmp_path, 1, 3) / "train-000.tar"
    source = open_source(section("webdataset", tmp_path), "train", classes=5)
    data = path.read_bytes()
    borders = [0, *(source.index.span(0, j)[1] for j in range(3))]
    for at in range(0, borders[-1], 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        for j in range(3):
            if borders[j] <= at < borders[j + 1]:
                with pytest.raises(BadSample, match="checksum") as caught:
                    source.read(0, j)
                assert caught.value.rotten
            else:
                source.read(0, j)


def test_a_shard_cut_after_it_was_indexed(tmp_path):
    path = write_shards(tmp_path, 1, 3) / "train-000.tar"
    source = open_source(section("webdataset", tmp_path), "train", classes=5)
    data = path.read_bytes()
    for cut in range(0, len(data), 512):
        path.write_bytes(data[:cut])
        with pytest.raises(WorldError, match=r"train-000\.tar has \d+ bytes, its index says"):
            source.read(0, 0)
    path.unlink()
    with pytest.raises(WorldError, match=r"train-000\.tar cannot be opened"):
        source.read(0, 0)


def test_a_shard_cut_while_it_is_read(tmp_path):
    path = write_shards(tmp_path, 1, 3) / "train-000.tar"
    source = open_source(section("webdataset", tmp_path), "train", classes=5)
    source.read(0, 0)
    with open(path, "r+b") as file:
        file.truncate(1024)
    with pytest.raises(WorldError, match=r"ended .* bytes early"):
        source.read(0, 2)


def test_few_files_stay_open(tmp_path):
    write_shards(tmp_path, 6, 1)
    source = open_source(section("webdataset", tmp_path), "train", classes=5)
    source._store.keep = 2
    for shard in (0, 1, 2, 3, 4, 5, 0):
        source.read(shard, 0)
        assert len(source._store._open) <= 2
    source.close()
    assert not source._store._open


def test_folder(tmp_path):
    write_folder(tmp_path / "train", {"dog": 2, "cat": 3})
    write_folder(tmp_path / "val", {"dog": 1, "cat": 1})
    source = open_source(section("folder", tmp_path), "train", classes=2)
    assert source.classes == ["cat", "dog"]
    assert source.counts.tolist() == [3, 2]
    sample = source.read(1, 1)
    assert (sample.key, sample.label) == ("dog/1.jpg", 1)
    assert sample.crc == source.crcs(1)[1]
    (tmp_path / "train" / "dog" / "1.jpg").write_bytes(jpeg(77))
    with pytest.raises(BadSample, match="checksum"):
        source.read(1, 1)
    assert open_source(section("folder", tmp_path), "eval", classes=2).counts.tolist() == [1, 1]
    with pytest.raises(UserError, match=r"matches data\.eval='test'\. Correct it, or set data\.eval=null"):
        open_source(section("folder", tmp_path, eval="test"), "eval")
    (tmp_path / "val").rename(tmp_path / "other")
    assert open_source(section("folder", tmp_path), "eval") is None  # which is so by default


def test_folders_that_do_not_fit(tmp_path):
    write_folder(tmp_path / "train", {"dog": 2, "cat": 3})
    write_folder(tmp_path / "val", {"dog": 1, "cow": 1})
    with pytest.raises(UserError, match=r"must have the same class folders.*: cat, cow are in one only"):
        open_source(section("folder", tmp_path), "eval", classes=2)
    with pytest.raises(UserError, match=r"model.classes=1000, but .*train has 2 class folders"):
        open_source(section("folder", tmp_path), "train", classes=1000)
    with pytest.raises(UserError, match=r"does not exist. A folder set is"):
        open_source(section("folder", tmp_path, train="training"), "train")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="no class folders"):
        open_source(section("folder", tmp_path / "empty"), "train")


def test_roots_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"data.root is not set"):
        open_source(section("webdataset"), "train")
    with pytest.raises(UserError, match="there is no such folder"):
        open_source(section("webdataset", tmp_path / "none"), "train")
    with pytest.raises(UserError, match=r"No file of .* matches data.train='train-\*.tar'"):
        open_source(section("webdataset", tmp_path), "train")


def test_a_shard_that_is_gone(tmp_path):
    write_shards(tmp_path, 3, 2)
    open_source(section("webdataset", tmp_path), "train")
    (tmp_path / "train-002.tar").unlink()
    with pytest.raises(WorldError, match=r"train-002\.tar is missing"):
        open_source(section("webdataset", tmp_path), "train")
