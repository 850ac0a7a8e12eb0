"""What is said of a set before it is trained on: faults, contents, how it will be read; and sets that are made up."""

import hashlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from restrain.cli.main import run
from restrain.data import index, synthetic
from restrain.data.index import Index
from restrain.data.indexing import Reporter, index_folder, index_shards, match_shards
from restrain.data.manifest import Entry
from restrain.data.order import Order, Plan
from restrain.data.sets import open_source
from restrain.data.sources import FolderSource, ShardSource
from restrain.data.survey import plan as survey
from restrain.data.survey.clustering import clustering
from restrain.data.survey.opening import indexed
from restrain.data.survey.stats import measure
from restrain.errors import UserError

from .making import jpeg, section, write_folder, write_shards, write_tar


def made(root):
    return index_shards(root, match_shards(root, "*.tar"))


# ------------------------------------------------------------------------------------------------- excluded samples


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
@settings(max_examples=100, deadline=None)
def test_samples_are_numbered_without_those_excluded(n, gone):
    gone = sorted(j for j in gone if j < n)
    offsets, crcs = np.arange(n + 1) * 512, np.arange(n) * 7 + 1
    table = np.frombuffer(index.shard_part(offsets, crcs), np.uint8)
    entry = Entry("a.tar", n, 0, "00" * 32, 0, 0, len(table))
    found = Index("shards", [entry], table, "", [("a.tar", j, "why") for j in gone])
    kept = [j for j in range(n) if j not in gone]
    assert found.counts.tolist() == [len(kept)]
    assert [found.stored(0, j) for j in range(len(kept))] == kept
    assert found.crcs(0).tolist() == [7 * j + 1 for j in kept]
    assert [found.span(0, j) for j in range(len(kept))] == [(512 * j, 512 * j + 512) for j in kept]
    assert (found.fingerprint == Index("shards", [entry], table, "").fingerprint) == (not gone)


def test_excluding_is_kept_until_the_data_change(tmp_path):
    write_shards(tmp_path, 2, 4)
    whole = made(tmp_path)
    left_out = Index("shards", whole.entries, whole.table, "", [("train-000.tar", 1, "bad")])
    index.write([tmp_path], left_out, whole.table.tobytes())
    source = ShardSource(index.load(tmp_path), tmp_path)
    assert [source.read(0, j).key for j in range(3)] == ["s00000", "s00002", "s00003"]
    write_shards(tmp_path / "more", 1, 2, prefix="other")
    (tmp_path / "more" / "other-000.tar").rename(tmp_path / "other-000.tar")
    said = []
    again = index_shards(tmp_path, match_shards(tmp_path, "*.tar"), refresh=True, reporter=Reporter(said.append))
    assert again.excluded == [("train-000.tar", 1, "bad")]
    assert "1 sample(s) stay excluded" in said
    write_tar(tmp_path / "train-000.tar", [("x.jpg", jpeg(1)), ("x.cls", b"0")])
    again = index_shards(tmp_path, match_shards(tmp_path, "*.tar"), refresh=True, reporter=Reporter(said.append))
    assert again.excluded == []
    assert "1 sample(s) that were excluded are of data that changed, and are in the set again" in said


def test_excluded_files_of_folders(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 2})
    found = index_folder(tmp_path)
    index.write([tmp_path], Index("folder", found.entries, found.table, "", [("a", 1, "bad")]), found.table.tobytes())
    source = FolderSource(index.load(tmp_path), tmp_path)
    assert [source.read(0, j).key for j in range(2)] == ["a/0.jpg", "a/2.jpg"]
    (tmp_path / "a" / "00.jpg").write_bytes(jpeg(9))  # comes between, so numbers move
    again = index_folder(tmp_path, refresh=True)
    assert again.excluded == [("a", 2, "bad")]
    assert again.file(0, 2) == "2.jpg"


# ---------------------------------------------------------------------------------------------------------- verify


def verify(*words) -> int:
    return run(["data", "verify", *map(str, words)])


def test_verify_finds_exactly_what_changed(tmp_path, capsys):
    path = write_shards(tmp_path, 2, 4) / "train-001.tar"
    made(tmp_path)
    assert verify(tmp_path) == 0
    assert "8 samples of 2 shards read, 0 fault(s)" in capsys.readouterr().out
    first, last = index.load(tmp_path).span(1, 2)
    data = bytearray(path.read_bytes())
    data[(first + last) // 2] ^= 1
    path.write_bytes(data)
    assert verify(tmp_path) == 1
    said = capsys.readouterr().out
    assert "train-001.tar, sample 2" in said
    assert "1 fault(s)" in said
    assert verify(tmp_path, "--exclude") == 0
    assert "1 sample(s) are left out from now on, 7 remain" in capsys.readouterr().out
    assert verify(tmp_path) == 0
    source = open_source(section("webdataset", tmp_path), "train")
    assert [source.read(1, j).key for j in range(3)] == ["s00004", "s00005", "s00007"]
    path.write_bytes(data[:-512])
    assert verify(tmp_path, "--exclude") == 1
    assert "cut short or changed" in capsys.readouterr().out
    path.unlink()
    assert verify(tmp_path) == 1
    assert "train-001.tar: it cannot be read: No such file" in capsys.readouterr().out


def test_verify_decodes(tmp_path, capsys):
    good, cut = jpeg(1), jpeg(2)[:-60]
    members = [("a.jpg", good), ("a.cls", b"1"), ("b.jpg", cut), ("b.cls", b"1"), ("c.jpg", good), ("d.txt", b"x")]
    write_tar(tmp_path / "train-0.tar", [*members, ("e.jpg", good), ("e.cls", b"one")])
    made(tmp_path)
    assert verify(tmp_path) == 0
    capsys.readouterr()
    assert verify(tmp_path, "--decode") == 1
    said = capsys.readouterr().out
    for line in ("1 (b): cannot be decoded", "2 (c): label missing", "3 (d): no image", "4 (e): label missing"):
        assert f"sample {line}" in said


def test_verify_folders(tmp_path, capsys):
    write_folder(tmp_path, {"a": 2, "b": 2})
    index_folder(tmp_path)
    assert verify(tmp_path, "--decode") == 0
    (tmp_path / "b/1.jpg").write_bytes(jpeg(77))
    (tmp_path / "a/0.jpg").unlink()
    assert verify(tmp_path) == 1
    said = capsys.readouterr().out
    assert "a, sample 0 (a/0.jpg): it cannot be read: No such file" in said
    assert "b, sample 1 (b/1.jpg): its bytes are not those" in said


# ----------------------------------------------------------------------------------------------------------- stats


def test_stats_are_those_of_numpy(tmp_path, capsys):
    write_folder(tmp_path, {"a": 5, "b": 3})
    (tmp_path / "b" / "copy.jpg").write_bytes((tmp_path / "a" / "1.jpg").read_bytes())
    (tmp_path / "b" / "p.png").write_bytes(jpeg(50, 30, 10, format="PNG"))
    source = FolderSource(index_folder(tmp_path), tmp_path)
    found = measure(source, most=None, pictures=100, workers=2, reporter=Reporter())
    images = [np.asarray(Image.open(path).convert("RGB")) / 255 for path in sorted(tmp_path.glob("*/*.[jp][pn]g"))]
    assert found.samples == found.decoded == len(images) == 10
    mean = np.mean([image.mean((0, 1)) for image in images], 0)
    std = np.sqrt(np.mean([np.square(image).mean((0, 1)) for image in images], 0) - mean**2)
    assert np.allclose(found.mean, mean, atol=6e-5)
    assert np.allclose(found.std, std, atol=6e-5)
    assert found.copies == [["a/1.jpg", "b/copy.jpg"]]
    assert found.labels == {0: 5, 1: 5}
    assert found.formats == {"JPG": 9, "PNG": 1}
    assert run(["data", "stats", str(tmp_path), "--most", "4", "--json", str(tmp_path / "out.json")]) == 0
    assert "4 of 10 samples read, 4 decoded" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["samples"] == 4


# ------------------------------------------------------------------------------------------------------------ plan


@pytest.mark.parametrize(("nodes", "lanes", "group"), [(1, 1, 4), (2, 4, 2), (3, 4, 2), (4, 8, 4), (6, 8, 2)])
def test_reads_are_those_of_a_whole_epoch(nodes, lanes, group):
    """The lanes of a node, against every sample that its ranks take in an epoch."""
    counts, ranks = np.full(60, 40), 2
    order = Order(counts, 3, lanes, 8 if lanes > 1 else 2400)
    plan = Plan(2400, nodes * ranks * 8, group, lanes)
    read = survey.reading(order, plan, counts * 10, nodes, ranks)
    touched = 0
    for node in range(nodes):
        seen = set()
        for step in range(plan.steps_per_epoch):
            for rank in range(node * ranks, (node + 1) * ranks):
                _, positions = plan.rows(step, 1, rank, nodes * ranks)
                seen |= set(order(0, positions.reshape(-1))[0].tolist())
        touched += len(seen) * 400
    assert read.amplification == pytest.approx(touched / 24000, rel=0.02)
    assert read.amplification * 24000 >= touched


# 7,100 shards of 2,000 samples, 8 ranks a node: lanes -> (nodes, micro-batch) -> bytes read over those of the set.
SPLIT = [(1, 64), (2, 64), (4, 64), (6, 64), (8, 64), (16, 64), (5, 60), (32, 32)]
AMPLIFICATION = {
    1: dict(zip(SPLIT, [1.0, 2.0, 4.0, 6.0, 8.0, 16.0, 5.0, 32.0], strict=True)),
    64: dict(zip(SPLIT, [1.0, 1.0, 1.0, 1.06, 1.0, 1.0, 1.06, 1.0], strict=True)),
    192: dict(zip(SPLIT, [1.0, 1.07, 1.09, 1.0, 1.12, 1.16, 1.12, 1.33], strict=True)),
}


def large(lanes: int, window: int) -> Order:
    return Order(np.full(7100, 2000), 0, lanes, window)


@pytest.mark.parametrize("lanes", AMPLIFICATION)
def test_read_amplification(lanes):
    order = large(lanes, 16384)
    for (nodes, micro), design in AMPLIFICATION[lanes].items():
        batch = nodes * 8 * micro
        plan = Plan(order.samples, batch, micro, lanes)
        read = survey.reading(order, plan, np.full(7100, 1000), nodes, 8)
        assert read.amplification == pytest.approx(design, abs=0.02), nodes


# (lanes, window) -> different shards in a batch of 4,096, and samples of the one that has most.
SHUFFLING = {(64, 4096): (192, 40), (64, 16384): (575, 17), (64, 65536): (1831, 7)}


@pytest.mark.parametrize("size", SHUFFLING)
def test_shuffle_quality(size):
    order = large(*size)
    mixed = survey.mixing(order, Plan(order.samples, 4096, 32, 64))
    shards, most = SHUFFLING[size]
    assert mixed.shards == pytest.approx(shards, rel=0.1)
    assert mixed.most == pytest.approx(most, rel=0.25)
    assert survey.full_mixing(order.counts, 4096) == pytest.approx(3113, rel=0.01)


def test_classes_that_lie_together(tmp_path):
    for name, label in (("sorted", lambda n: n // 20), ("mixed", lambda n: n % 10)):
        root = tmp_path / name
        root.mkdir()
        for shard in range(10):
            numbers = range(shard * 20, shard * 20 + 20)
            members = [m for n in numbers for m in ((f"{n:03d}.jpg", b"x"), (f"{n:03d}.cls", b"%d" % label(n)))]
            write_tar(root / f"train-{shard}.tar", members)
        source = ShardSource(made(root), root)
        order = Order(source.counts, 0, 1, 10)
        found = clustering(source, order, Plan(200, 20, 10, 1))
        assert found.clustered == (name == "sorted"), found
        whole = Order(source.counts, 0, 1, 200)
        assert not clustering(source, whole, Plan(200, 20, 10, 1)).clustered


def test_plan_command(tmp_path, capsys):
    write_shards(tmp_path / "set", 4, 8)
    made(tmp_path / "set")
    words = ["data", "plan", "imagenet_resnet50", f"data.root={tmp_path / 'set'}", "batch.global=8", "batch.group=4"]
    assert run([*words, "--gpus", "2"]) == 0
    said = capsys.readouterr().out
    assert "epoch: 4 steps of 8 in groups of 4; 0 samples are left out" in said
    assert "worlds that work: 1, 2" in said
    assert "labels:" in said
    assert run([*words, "--gpus", "3"]) == 0
    assert "3 processes cannot share a step" in capsys.readouterr().out
    assert run(["data", "plan", "digits_resnet20"]) == 2
    assert run(["data", "plan", str(tmp_path / "set"), "--batch", "8", "--group", "4"]) == 0


# ------------------------------------------------------------------------------------------------------- made up


def test_made_up_sets_are_the_same_twice(tmp_path):
    for name in ("a", "b"):
        assert (
            run(
                [
                    "data",
                    "synth",
                    "30",
                    str(tmp_path / name),
                    "--size",
                    "32x24",
                    "--shard-size",
                    "40kB",
                    "--classes",
                    "4",
                ]
            )
            == 0
        )
    files = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in (tmp_path / "a").glob("*.tar")}
    assert len(files) > 1
    assert files == {path.name: hashlib.sha256(path.read_bytes()).digest() for path in (tmp_path / "b").glob("*.tar")}
    source = open_source(section("webdataset", tmp_path / "a"), "train", classes=4)
    assert source.counts.sum() == 30
    assert Image.open(io.BytesIO(bytes(source.read(0, 3).data))).size == (32, 24)
    assert run(["data", "synth", "30", str(tmp_path / "a")]) == 2  # not empty


def test_an_index_of_any_size(tmp_path):
    found = synthetic.write_index(tmp_path, 1_000_003, 97)
    again = indexed(tmp_path)
    assert again.counts.sum() == 1_000_003
    assert again.fingerprint == found.fingerprint
    with pytest.raises(UserError, match="has no index"):
        indexed(tmp_path / "..")
