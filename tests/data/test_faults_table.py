"""The table of faults, a test a cell: what training does, and what evaluation. (The loader's own tests, and those of
remote shards, have the details: test_loader.py, test_remote.py.)"""

import re
import zlib

import pytest

from restrain.data import augment, sets
from restrain.data.laps import Laps
from restrain.data.loader import EvalLoader
from restrain.data.manifest import MANIFEST
from restrain.data.remote import opening as remote
from restrain.data.remote.fetching import Patience
from restrain.data.sources import ShardSource
from restrain.errors import WorldError
from restrain.training.waiting import WINDOW, Waiting
from tests import worlds
from tests.bad_input.harness import AUGMENT, RECIPE
from tests.data.faulty import FaultyServer
from tests.data.making import jpeg, section, train_loader, write_shards, write_tar

ROTTEN = "its bytes are not those that were indexed (checksum)"


def evaluated(source, **fields):
    loader = EvalLoader(source, augment.eval_pipeline(12, 14), rank=0, world=1, batch=6, threads=2, **fields)
    return list(loader)


def both(root):
    """The same shards as training and as evaluation set."""
    return [
        sets.open_source(section("webdataset", root, train="*.tar", eval="*.tar"), split, classes=5)
        for split in ("train", "eval")
    ]


def replaced(source, **fields):
    found = {r for batch in train_loader(source, **fields) for r in batch.replaced}
    return {(r.shard, r.j, r.key, r.reason, r.used_j) for r in found}


# ------------------------------------------------------------------------------------------- truncated, changed shards


@pytest.mark.parametrize("damage", ["cut", "longer"])
def test_a_local_shard_of_another_size_is_raised_in_training_and_in_evaluation(tmp_path, damage):
    root = write_shards(tmp_path / "set", 2, 9)
    train, evaluation = both(root)
    path = root / "train-001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-512] if damage == "cut" else data + bytes(512))
    for read in (lambda: list(train_loader(train)), lambda: evaluated(evaluation)):
        with pytest.raises(WorldError, match=r"train-001\.tar has \d+ bytes, its index says \d+: it was cut short or"):
            read()


@pytest.fixture
def server(tmp_path):
    root = write_shards(tmp_path / "served", 2, 9)
    both(root)  # writes the index
    assert (root / MANIFEST).exists()
    server = FaultyServer(root)
    yield server
    server.shutdown()
    server.server_close()


def served(server, tmp_path):
    data = section("webdataset", train="train-*.tar", cache=str(tmp_path / "cache"))
    data.root = server.url
    index, store = remote.open_shards(data, ["train-*.tar"], Patience(tries=3, first_wait=0.01, longest_wait=0.02))
    return ShardSource(index, server.url, 5, store)


def test_a_remote_shard_that_came_over_wrong_is_fetched_once_more(server, tmp_path):
    """One byte is another, the length is right: only the SHA-256 knows."""
    straight = served(server, tmp_path / "straight")
    wanted = [straight.read(0, j).crc for j in range(9)]
    path = server.root / "train-000.tar"
    good = path.read_bytes()
    path.write_bytes(good[:700] + bytes([good[700] ^ 1]) + good[701:])
    before, source = server.gets["train-000.tar"], served(server, tmp_path / "once")

    class Healing(dict):
        def get(self, name, default=None):
            if name == "train-000.tar" and server.gets[name] == before + 2:
                path.write_bytes(good)
            return super().get(name, default)

    server.faults = Healing()
    assert [source.read(0, j).crc for j in range(9)] == wanted
    assert server.gets["train-000.tar"] == before + 2


@pytest.mark.parametrize("use", ["train", "eval"])
def test_a_remote_shard_that_was_changed_is_raised(server, tmp_path, use):
    path = server.root / "train-000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    source = served(server, tmp_path)
    with pytest.raises(WorldError, match=r"train-000\.tar is not what its index says"):
        source.read(0, 0)
    assert server.gets["train-000.tar"] == 2
    with pytest.raises(WorldError, match=r"train-000\.tar is not what its index says"):
        list(train_loader(source)) if use == "train" else evaluated(source)


# ----------------------------------------------------------------------------------------------------------- bit rot


def test_every_97th_byte_of_a_shard_flipped_in_turn_is_that_sample_and_no_other(tmp_path):
    """Found on the way from the disk to the decoder: exactly one sample of the shard does not fit its CRC."""
    members = [m for n in range(4) for m in ((f"k{n}.cls", b"1"), (f"k{n}.jpg", jpeg(n, 8, 8)))]
    path = write_tar(tmp_path / "train-0.tar", members)
    source, _ = both(tmp_path)
    offsets = [0, *(source.index.span(0, j)[1] for j in range(4))]
    good = path.read_bytes()
    crcs = source.crcs(0).tolist()
    tried = set()
    for at in range(0, offsets[-1], 97):
        data = bytearray(good)
        data[at] ^= 1 << (at % 8)
        with path.open("r+b") as file:  # in place, as disks rot: same file, same size
            file.write(data)
        hit = next(j for j in range(4) if offsets[j] <= at < offsets[j + 1])
        tried.add(hit)
        for j in range(4):
            if j == hit:
                with pytest.raises(Exception, match=re.escape(ROTTEN)) as told:
                    source.read(0, j)
                assert (told.value.shard, told.value.j, told.value.rotten) == ("train-0.tar", j, True)
            else:
                assert source.read(0, j).crc == crcs[j] == zlib.crc32(good[offsets[j] : offsets[j + 1]])
    assert tried == {0, 1, 2, 3}


def rot(root, shard, source, j):
    path = root / f"train-{shard:03d}.tar"
    data = bytearray(path.read_bytes())
    data[source.index.span(shard, j)[0] + 700] ^= 1
    path.write_bytes(data)


def test_bit_rot_is_replaced_in_training_and_raised_in_evaluation(tmp_path):
    root = write_shards(tmp_path, 2, 9)
    train, evaluation = both(root)
    rot(root, 1, train, 8)
    ((shard, j, key, reason, used),) = replaced(train)
    assert (shard, j, reason, used) == (1, 8, ROTTEN, 0)
    assert key == f"at byte {train.index.span(1, 8)[0]}"  # what the name says cannot be trusted
    with pytest.raises(WorldError, match=rf"Evaluation stopped: sample 8 .* of train-001\.tar: {re.escape(ROTTEN)}"):
        evaluated(evaluation)


# -------------------------------------------------------------------------------------- undecodable, a missing field

FIELDS = {
    "no image": ([("b.cls", b"1")], "no image among its files (.cls)"),
    "no label": ([("b.jpg", jpeg(1))], "label missing: neither .cls nor .json among its files (.jpg)"),
    "no number": ([("b.jpg", jpeg(1)), ("b.cls", b"cat")], "label missing: its .cls holds b'cat', no whole number"),
    "no JPEG": ([("b.jpg", b"nonsense"), ("b.cls", b"1")], "cannot be decoded: no image format that PIL knows"),
    "empty": ([("b.jpg", b""), ("b.cls", b"1")], "cannot be decoded"),
    "half": ([("b.jpg", jpeg(1, 64, 64)[:-900]), ("b.cls", b"1")], "cannot be decoded"),
}


@pytest.mark.parametrize("what", FIELDS)
def test_such_a_sample_is_replaced_in_training_and_not_valid_in_evaluation(tmp_path, what):
    members, said = FIELDS[what]
    others = [m for n in "acdefgh" for m in ((f"{n}.jpg", jpeg(ord(n))), (f"{n}.cls", b"1"))]
    write_tar(tmp_path / "train-0.tar", [*others[:2], *members, *others[2:]])
    train, evaluation = both(tmp_path)
    ((shard, j, key, reason, used),) = replaced(train)
    assert (shard, j, key, used) == (0, 1, "b", 2)
    assert reason.startswith(said)
    batches = evaluated(evaluation)
    assert [int(i) for b in batches for i in b.index[b.valid]] == [0, *range(2, 8)]
    assert [(b.shard, b.j, b.key, b.reason) for one in batches for b in one.bad] == [(0, 1, "b", reason)]


def test_above_the_budget_both_raise(tmp_path):
    members = [m for n in range(30) for m in ((f"k{n:02d}.jpg", jpeg(n) if n % 2 else b"x"), (f"k{n:02d}.cls", b"1"))]
    write_tar(tmp_path / "train-0.tar", members)
    train, evaluation = both(tmp_path)
    with pytest.raises(WorldError, match=r"Too many bad samples: \d+ of \d+ had to be replaced"):
        list(train_loader(train, stop=9))
    with pytest.raises(WorldError, match=r"\d+ of 30 had to be left out of the evaluation"):
        evaluated(evaluation)
    assert sum(int(b.valid.sum()) for b in evaluated(evaluation, max_bad=0.5)) == 15


# ------------------------------------------------------------------------------------------------- whole runs


def trained(folder, run, *words, world=1, faults=None):
    recipe = folder / "mine.yaml"
    recipe.write_text(RECIPE)
    more = ["data.name=webdataset", AUGMENT, f"data.root={folder / 'set'}", "checkpoint.every=2st", *words]
    return worlds.train(folder / run, more, world, faults, recipe=str(recipe))


def small_set(folder, bad=()):
    """16 samples of two classes; those of ``bad`` cannot be decoded. The evaluation set has the same."""
    (folder / "set").mkdir()
    members = []
    for n in range(16):
        image = b"no image" if n in bad else jpeg(n, 8, 8)
        members += [(f"s{n:03d}.cls", b"%d" % (n % 2)), (f"s{n:03d}.jpg", image)]
    for split in ("train", "val"):
        write_tar(folder / "set" / f"{split}-0.tar", members)
    return folder


def events(run):
    return sorted(
        (line["step"], line.get("split", "train"), line["shard"], line["j"], line["key"], line["reason"])
        for path in run.glob("bad_samples*.jsonl")
        for line in worlds.lines(path)
    )


SIX = ["length=6st", "evaluate.every=3st", "batch.micro=2"]


@pytest.mark.slow
def test_every_event_is_in_the_file_once_on_any_world_and_after_a_kill(tmp_path):
    small_set(tmp_path, bad={3, 9})
    assert trained(tmp_path, "one", *SIX).codes == [0]
    straight = events(tmp_path / "one")
    reason = "cannot be decoded: no image format that PIL knows"
    assert {event[1:] for event in straight} == {
        (split, 0, j, f"s{j:03d}", reason) for split in ("train", "eval") for j in (3, 9)
    }
    assert [event[:4] for event in straight if event[1] == "eval"] == [
        (s, "eval", 0, j) for s in (3, 6) for j in (3, 9)
    ]
    assert len(straight) == len(set(straight))
    assert trained(tmp_path, "two", *SIX, world=2).codes == [0, 0]
    assert events(tmp_path / "two") == straight
    killed = trained(tmp_path, "cut", *SIX, world=2, faults={1: [("at_step", {"step": 4})]})
    assert killed.codes[1] == -9
    assert killed.codes[0] != 0
    assert trained(tmp_path, "cut", *SIX).codes == [0]
    assert events(tmp_path / "cut") == straight


def test_the_budget_counts_over_resumes(tmp_path):
    """Six bad ones of sixteen: the eleventh event stops the run, in whichever attempt it comes."""
    small_set(tmp_path, bad={0, 2, 5, 7, 9, 12})
    (tmp_path / "set" / "val-0.tar").unlink()
    faults = {0: [("at_step", {"step": 5, "signal": "SIGTERM"})]}
    assert trained(tmp_path, "run", "length=9st", faults=faults).codes == [75]
    first = len(events(tmp_path / "run"))
    assert 0 < first <= 10
    ended = trained(tmp_path, "run", "length=9st")
    assert ended.codes == [1], ended.text
    assert re.search(r"Too many bad samples: 1\d of \d+ had to be replaced over the whole run", ended.text), ended.text


@pytest.mark.parametrize(
    ("fault", "said"),
    [("storage_gone", "cannot be read: Input/output error"), ("no_memory", "Out of memory")],
)
def test_storage_or_a_worker_that_fails_for_good_ends_all_ranks_and_the_resume_is_exact(tmp_path, fault, said):
    small_set(tmp_path)
    words = ["length=6st", "evaluate.every=6st"]
    assert trained(tmp_path, "whole", *words, world=2).codes == [0, 0]
    ended = trained(tmp_path, "run", *words, world=2, faults={1: [(fault, {"step": 4})]})
    assert ended.codes[1] == 1, ended.text
    assert ended.codes[0] not in (0, None), ended.text
    assert said in ended.said[1]
    assert "Traceback" not in ended.text
    ended = trained(tmp_path, "run", *words, world=2)
    assert ended.codes == [0, 0], ended.text
    assert worlds.ledger(tmp_path / "run") == worlds.ledger(tmp_path / "whole")
    worlds.assert_bit_equal(tmp_path / "run", tmp_path / "whole", 6)


def test_storage_that_fails_in_evaluation_is_raised(tmp_path):
    root = write_shards(tmp_path, 2, 9)
    _, evaluation = both(root)
    (root / "train-001.tar").unlink()
    with pytest.raises(WorldError, match=r"train-001\.tar cannot be opened: No such file"):
        evaluated(evaluation)


def test_slow_storage_is_said_with_its_cause():
    laps = Laps()
    waiting = Waiting(laps, 4)
    for _ in range(100):  # some are timed
        if (lap := laps.begin()) is not None:
            lap.lap("read")
    assert waiting.step(WINDOW / 2, 0.04 * WINDOW) is None
    said = waiting.step(WINDOW, 0.5 * WINDOW)
    assert said is not None
    assert said.startswith("data wait: 36 % of the last 2 steps")
    assert "The storage is the bound" in said


@pytest.mark.parametrize(("bad", "fails"), [(10, False), (11, True)])
def test_evaluation_counts_the_bad_samples_of_all_ranks(bad, fails):
    """The reduced count is what is held to the budget, so that no world lets more pass than another."""
    from restrain.data.filling import check_left_out

    if fails:
        with pytest.raises(WorldError, match="Too many bad samples: 11 of 40 had to be left out"):
            check_left_out(bad, 40, 1e-4)
    else:
        check_left_out(bad, 40, 1e-4)
