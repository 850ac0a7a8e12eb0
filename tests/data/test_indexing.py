"""The side index: where it is written, when it is made again, what it refuses."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from restrain.data import index, indexing, tars
from restrain.data.indexing import Reporter, index_folder, index_shards, match_shards
from restrain.data.manifest import MANIFEST
from restrain.errors import UserError, WorldError
from tests.data.making import jpeg, write_folder, write_shards, write_tar


@pytest.fixture
def scans(monkeypatch):
    """Names of the shards that were read."""
    seen = []
    real = tars.scan
    monkeypatch.setattr(tars, "scan", lambda path: seen.append(os.path.basename(path)) or real(path))
    return seen


def all_of(root, **options):
    return index_shards(root, match_shards(root, "*.tar"), **options)


def test_manifest_and_table(tmp_path):
    write_shards(tmp_path, 2, 3)
    said = []
    made = all_of(tmp_path, reporter=Reporter(said.append))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["nsamples"] == 6
    assert manifest["fingerprint"] == made.fingerprint
    assert [s["url"] for s in manifest["shardlist"]] == ["train-000.tar", "train-001.tar"]
    assert (tmp_path / index.TABLE).stat().st_size == 2 * 32  # 4 (n + 1) + 4 n bytes, to a multiple of 8
    assert said == [f"Indexing 2 shard(s) of {tmp_path}", f"The index is in {tmp_path}: 2 shards, 6 samples"]
    again = all_of(tmp_path)
    for shard in range(2):
        found = tars.scan(str(tmp_path / made.names[shard]))
        for one in (made, again):
            assert [one.span(shard, j) for j in range(3)] == list(pairwise(found.offsets.tolist()))
            assert (one.crcs(shard) == found.crcs).all()


def test_incremental_by_size_and_time(tmp_path, scans):
    write_shards(tmp_path, 3, 2)
    first = all_of(tmp_path)
    assert sorted(scans) == first.names
    scans.clear()
    assert all_of(tmp_path, refresh=True).fingerprint == first.fingerprint
    assert scans == []
    os.utime(tmp_path / "train-001.tar", ns=(1, 1))
    assert all_of(tmp_path, refresh=True).fingerprint == first.fingerprint
    assert scans == ["train-001.tar"]
    scans.clear()
    write_shards(tmp_path, 1, 2, prefix="val")
    assert all_of(tmp_path).names == [*first.names, "val-000.tar"]
    assert scans == ["val-000.tar"]


def test_fingerprint_is_of_the_selected_content(tmp_path):
    a, b = write_shards(tmp_path / "a", 2, 2), write_shards(tmp_path / "b", 2, 2)
    assert all_of(a).fingerprint == all_of(b).fingerprint
    train = index_shards(a, ["train-000.tar"]).fingerprint
    write_shards(a, 1, 2, prefix="val")
    assert index_shards(a, ["train-000.tar"]).fingerprint == train != all_of(a).fingerprint
    write_tar(b / "train-001.tar", [("s.jpg", jpeg(9)), ("s.cls", b"1")])
    assert all_of(b, refresh=True).fingerprint != all_of(a).select(["train-000.tar", "train-001.tar"]).fingerprint


def test_each_cut_of_an_indexed_shard_is_an_error(tmp_path):
    """By its size alone, padding included."""
    write_shards(tmp_path, 1, 2)
    all_of(tmp_path)
    path = tmp_path / "train-000.tar"
    data = path.read_bytes()
    for cut in range(0, len(data), 512):
        path.write_bytes(data[:cut])
        with pytest.raises(WorldError, match=r"train-000.tar has \d+ bytes, its index says \d+: it was cut short"):
            all_of(tmp_path)


def test_a_shard_that_is_gone(tmp_path):
    write_shards(tmp_path, 3, 2)
    all_of(tmp_path)
    (tmp_path / "train-001.tar").unlink()
    names = match_shards(tmp_path, "train-*.tar")
    with pytest.raises(WorldError, match=r"train-001.tar is missing: the index in .* lists it"):
        indexing.check_none_missing(tmp_path, "train-*.tar", names)
    assert all_of(tmp_path, refresh=True).names == names
    indexing.check_none_missing(tmp_path, "train-*.tar", names)


def test_read_only_data_are_indexed_in_the_cache(tmp_path):
    root = write_shards(tmp_path / "data", 1, 2)
    root.chmod(0o555)
    made = all_of(root)
    assert made.place.startswith(os.environ["XDG_CACHE_HOME"])
    assert os.listdir(root) == ["train-000.tar"]
    assert all_of(root).place == made.place
    assert all_of(root, cache=str(tmp_path / "mine")).place.startswith(str(tmp_path / "mine"))


def test_nowhere_to_write(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "data", 1, 2)
    root.chmod(0o555)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(WorldError, match=r"neither beside the data nor into the cache .*read-only.*data\.cache=FOLDER"):
        all_of(root)


@pytest.mark.parametrize("damage", ["table cut", "table byte", "manifest cut", "version"])
def test_a_damaged_index_is_made_again(tmp_path, scans, damage):
    write_shards(tmp_path, 1, 2)
    fingerprint = all_of(tmp_path).fingerprint
    table, manifest = tmp_path / index.TABLE, tmp_path / MANIFEST
    if damage == "table cut":
        table.write_bytes(table.read_bytes()[:-8])
    elif damage == "table byte":
        table.write_bytes(bytes([table.read_bytes()[0] ^ 1]) + table.read_bytes()[1:])
    elif damage == "manifest cut":
        manifest.write_text(manifest.read_text()[:-20])
    else:
        manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 99'))
    scans.clear()
    assert all_of(tmp_path).fingerprint == fingerprint
    assert scans == ["train-000.tar"]


def test_patterns(tmp_path):
    write_shards(tmp_path, 12, 1)
    assert match_shards(tmp_path, "train-00[12].tar") == ["train-001.tar", "train-002.tar"]
    assert match_shards(tmp_path, "train-{000..011}.tar") == match_shards(tmp_path, "*.tar")
    assert match_shards(tmp_path, "val-*.tar") == []
    with pytest.raises(WorldError, match=r"train-012\.tar is missing"):
        match_shards(tmp_path, "train-{000..012}.tar")
    with pytest.raises(UserError, match="does not exist"):
        match_shards(tmp_path / "none", "*.tar")


def test_folder_classes_and_files_in_byte_order(tmp_path):
    write_folder(tmp_path, {"b": 11, "Z": 1, "ä": 1, "a": 2})
    (tmp_path / "a" / "deep").mkdir()
    (tmp_path / "a" / "deep" / "x.PNG").write_bytes(jpeg(1, format="PNG"))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    made = index_folder(tmp_path)
    assert made.classes == ["Z", "a", "b", "ä"]
    assert [made.file(1, j) for j in range(3)] == ["0.jpg", "1.jpg", "deep/x.PNG"]
    assert [made.file(2, j) for j in range(4)] == ["0.jpg", "1.jpg", "10.jpg", "2.jpg"]
    assert made.counts.tolist() == [1, 3, 11, 1]
    assert index.class_rows(made.part(1), 3)[2][0] == (tmp_path / "a" / "deep" / "x.PNG").stat().st_size


def test_folder_index_follows_the_files(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    first = index_folder(tmp_path)
    said = []
    assert index_folder(tmp_path, reporter=Reporter(said.append)).fingerprint == first.fingerprint
    assert said == []
    (tmp_path / "a" / "9.jpg").write_bytes(jpeg(99))
    second = index_folder(tmp_path, reporter=Reporter(said.append))
    assert second.counts.tolist() == [3, 2]
    assert said[0].startswith("Indexing")
    (tmp_path / "b" / "0.jpg").write_bytes(jpeg(100))
    assert index_folder(tmp_path).fingerprint == second.fingerprint  # not looked at: reading will find it
    assert index_folder(tmp_path, refresh=True).fingerprint != second.fingerprint


def test_folders_that_are_no_set(tmp_path):
    with pytest.raises(UserError, match="no class folders"):
        index_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="a holds no images"):
        index_folder(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_command(tmp_path):
    from restrain.cli.data import app

    write_shards(tmp_path / "shards", 2, 3)
    write_folder(tmp_path / "set" / "train", {"a": 2})
    write_folder(tmp_path / "set" / "val", {"a": 1})
    for folder in ("shards", "set", "set/train"):
        result = CliRunner().invoke(app, ["index", str(tmp_path / folder)])
        assert result.exit_code == 0, result.output
    assert index.load(tmp_path / "shards").counts.tolist() == [3, 3]
    assert index.load(tmp_path / "set" / "val").counts.tolist() == [1]
    (tmp_path / "empty").mkdir()
    error = CliRunner().invoke(app, ["index", str(tmp_path / "empty")]).exception
    assert isinstance(error, UserError)
    assert "holds no data set" in str(error)


def test_no_torch():
    modules = "restrain.cli.data, restrain.data.indexing, restrain.data.expected, restrain.data.progress"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"x")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b" / "here").symlink_to(".")
    assert indexing.list_classes(tmp_path) == {"a": ["1.png"], "b": ["1.png"]}
