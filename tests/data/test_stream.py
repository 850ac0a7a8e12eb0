"""Sets without an index: what is read, what is refused, and that no shell runs unasked."""

import gzip
import shlex

import pytest

from restrain.data import sets
from restrain.errors import UserError, WorldError
from tests import worlds
from tests.bad_input.harness import AUGMENT, RECIPE
from tests.data.making import contents, section, train_loader, write_shards


def zipped(root, shards=3, samples=9):
    write_shards(root, shards, samples, classes=2)
    for path in root.glob("*.tar"):
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
    return root


def stream(root, **fields):
    fields = {"train": "train-*.tar.gz", "mode": "stream", "samples_per_epoch": 24, "allow_pipe": False, **fields}
    return sets.open_source(section("webdataset", root, **fields), "train", classes=5)


def test_every_sample_comes_and_steps_have_their_length(tmp_path):
    source = stream(zipped(tmp_path))
    rows = contents(train_loader(source, stop=60, threads=3))
    assert len(rows) == 60 * 8
    keys = {source.read(0, 0).key for _ in range(400)}
    assert keys == {f"s{n:05d}" for n in range(27)}
    with pytest.raises(UserError, match="cannot be audited"):
        source.crcs(0)
    source.close()


def test_two_readers_draw_other_samples(tmp_path):
    zipped(tmp_path)
    one, other = ([source.read(0, 0).key for _ in range(50)] for source in (stream(tmp_path), stream(tmp_path)))
    assert one != other


def test_a_command_runs_only_when_it_is_allowed(tmp_path):
    root = zipped(tmp_path / "set", 1)
    mark = tmp_path / "ran"
    command = f"pipe:touch {shlex.quote(str(mark))}; gzip -dc {shlex.quote(str(root / 'train-000.tar.gz'))}"
    with pytest.raises(UserError, match=r"a command that a shell would run.*data\.allow_pipe=true"):
        stream(None, train=command)
    assert not mark.exists()
    source = stream(None, train=command, allow_pipe=True)
    assert not mark.exists()
    assert source.read(0, 0).key.startswith("s0000")
    assert mark.exists()
    with pytest.raises(WorldError, match=r"pipe:\.\.\. failed with exit code 1"):
        stream(None, train="pipe:false", allow_pipe=True).read(0, 0)


def test_a_name_that_looks_like_a_command_is_a_file(tmp_path):
    """Webdataset's gopen would run it."""
    with pytest.raises(UserError, match="No file of"):
        stream(tmp_path, train="*pipe:touch x")


def test_a_damaged_archive_is_named(tmp_path):
    path = zipped(tmp_path, 1) / "train-000.tar.gz"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(WorldError, match=r"train-000\.tar\.gz cannot be read to its end"):
        stream(tmp_path).read(0, 0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"samples_per_epoch": None}, "needs data.samples_per_epoch"),
        ({"train": "no-*.tar"}, "No file of"),
        ({"root": "https://user:secret@example.org/x"}, "is given with a password or a query"),
        ({"root": None}, "data.root is not set"),
    ],
)
def test_refused(tmp_path, fields, said):
    with pytest.raises(UserError, match=said) as told:
        stream(fields.pop("root", zipped(tmp_path)), **fields)
    assert "secret" not in str(told.value)


@pytest.mark.slow
def test_a_run_trains_is_killed_and_goes_on(tmp_path):
    zipped(tmp_path / "set")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE)
    words = ["data.name=webdataset", AUGMENT, f"data.root={tmp_path / 'set'}", "data.train=train-*.tar.gz"]
    words += ["data.eval=null", "data.mode=stream", "data.samples_per_epoch=24", "length=8st", "checkpoint.every=2st"]
    run = tmp_path / "run"
    faults = {1: [("at_step", {"step": 6})]}
    ended = worlds.train(run, words, 2, faults, recipe=str(recipe))
    assert ended.codes[1] == -9, ended.text
    assert "data.mode=stream: the order of samples is not exact" in ended.text
    ended = worlds.train(run, words, 1, recipe=str(recipe))
    assert ended.codes == [0], ended.text
    assert [line["step"] for line in worlds.journal(run)] == list(range(1, 9))
    assert 'fingerprint: "stream-' in (run / "recipe.lock.yaml").read_text()
    assert all(line["audit"] is False for line in worlds.ledger(run))
