"""Packing text: the text comes back, the same bytes whatever the workers and however often it was killed."""

import gzip
import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from restrain.data.text import codes, documents, manifest, packing
from restrain.data.text.dealing import Lengths, deal
from restrain.data.text.documents import Reading, cut_parts, list_files, read
from restrain.data.text.packing import Settings, pack
from restrain.data.text.raw import describe
from restrain.errors import UserError, WorldError

WORDS = ["the stream of tokens", "naïve café, 12 €", "日本語のテキスト", "\N{PILE OF POO}", "ends with a line\n"]
TEXTS = [f"{number}: {WORDS[number % len(WORDS)]} " * (1 + number % 7) for number in range(200)]


def lines(path: Path, texts, field="text") -> Path:
    path.write_text("".join(json.dumps({field: text, "n": 1}) + "\n" for text in texts))
    return path


def stored(root: Path, split: str) -> list[list[int]]:
    """The documents of a split, read naively, their end token last."""
    made = manifest.load(root)
    found = []
    for shard in made.shards:
        if shard.name.startswith(split):
            tokens = np.fromfile(root / shard.name, made.stored)
            starts = np.fromfile(root / manifest.index_name(shard.name), "<u8").astype(int)
            assert (len(tokens), len(starts)) == (shard.tokens, shard.documents)
            assert hashlib.sha256((root / shard.name).read_bytes()).hexdigest() == shard.sha256
            found += [part.tolist() for part in np.split(tokens, starts[1:])]
    return found


def texts_of(root: Path, split: str) -> list[str]:
    made = manifest.load(root)
    tokenizer = codes.of_set(made, root)
    return [tokenizer.decode(np.array([t for t in one if t != made.document_end])) for one in stored(root, split)]


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def bpe(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    path = tmp_path / "bpe.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "file"])
def test_the_text_comes_back(tmp_path, bpe, tokenizer):
    source = lines(tmp_path / "text.jsonl", TEXTS)
    name = str(bpe) if tokenizer == "file" else tokenizer
    made = pack(source, tmp_path / "set", Settings(name, shard_size=3000))
    assert sorted(texts_of(tmp_path / "set", "train")) == sorted(TEXTS)
    assert len(made.shards) > 1
    found = stored(tmp_path / "set", "train")
    assert max(map(max, found)) < made.vocab_size
    if tokenizer == "bytes":
        assert sorted(found) == sorted([*text.encode(), 256] for text in TEXTS)
        assert (made.vocab_size, made.document_end) == (257, 256)
    if tokenizer == "chars":
        assert made.tokenizer["vocabulary"] == "".join(sorted(set("".join(TEXTS))))
    if tokenizer == "file":
        from tokenizers import Tokenizer

        theirs = Tokenizer.from_file(str(bpe))
        end = theirs.token_to_id("<|endoftext|>")
        assert sorted(found) == sorted([*theirs.encode(text, add_special_tokens=False).ids, end] for text in TEXTS)
        assert (tmp_path / "set" / made.tokenizer["file"]).read_bytes() == bpe.read_bytes()


def test_the_order_is_keyed_and_can_be_left_alone(tmp_path):
    source = lines(tmp_path / "text.jsonl", TEXTS)
    pack(source, tmp_path / "as-it-is", Settings(shuffle=False))
    assert texts_of(tmp_path / "as-it-is", "train") == TEXTS
    orders = []
    for seed in (0, 1):
        pack(source, tmp_path / f"seed{seed}", Settings(seed=seed))
        orders.append(texts_of(tmp_path / f"seed{seed}", "train"))
    assert orders[0] != orders[1]
    assert TEXTS not in orders
    # Frozen: the same text and seed give this set for ever.
    first = manifest.load(tmp_path / "seed0").shards[0]
    assert first.sha256 == "b8760fb1af68ae6a0a7870839286c29ee32bd326656607a4cb54e9b85ed60878"


def test_the_same_bytes_whatever_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "cut_parts", lambda files: cut_parts(files, 500))
    source = tmp_path / "text"
    (source / "below").mkdir(parents=True)
    lines(source / "a.jsonl", TEXTS[:90])
    (source / "below" / "b.txt").write_text("one document\n")
    (source / "c.jsonl.gz").write_bytes(gzip.compress(lines(tmp_path / "c", TEXTS[90:140]).read_bytes()))
    frames = [zstandard.compress(lines(tmp_path / "d", part).read_bytes()) for part in (TEXTS[140:170], TEXTS[170:])]
    (source / "d.jsonl.zst").write_bytes(b"".join(frames))
    made = [tmp_path / f"{workers}" for workers in (1, 2, 7)]
    for root in made:
        pack(
            source,
            root,
            Settings("chars", end="new", eval_share=Fraction(1, 5), shard_size=2000),
            workers=int(root.name),
        )
    assert content(made[0]) == content(made[1]) == content(made[2])
    assert sorted(texts_of(made[0], "train") + texts_of(made[0], "val")) == sorted([*TEXTS, "one document\n"])
    held = sum(map(len, texts_of(made[0], "val"))) / sum(map(len, TEXTS))
    assert held == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("stop", [1, 2, 5, 9, 14])
def test_a_second_call_goes_on_after_a_kill(tmp_path, monkeypatch, stop):
    """Killed at the n-th rename of a file, with that file half written; the work before is not done again."""
    monkeypatch.setattr(packing, "cut_parts", lambda files: cut_parts(files, 3000))
    source = lines(tmp_path / "text.jsonl", TEXTS)
    settings = Settings(shard_size=4000, eval_share=Fraction(1, 10))
    pack(source, tmp_path / "straight", settings, workers=1)

    class Killed(BaseException):
        pass

    real, seen, lock = packing.os.replace, [0], threading.Lock()

    def dying(a, b):
        with lock:
            seen[0] += 1
        if seen[0] > stop:
            raise Killed
        real(a, b)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", dying)
        with pytest.raises(Killed):
            pack(source, tmp_path / "set", settings, workers=1)
    assert manifest.load(tmp_path / "set") is None
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.tok")}
    stands = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("*.bin.json")}
    pack(source, tmp_path / "set", settings, workers=2)
    assert content(tmp_path / "set") == content(tmp_path / "straight")
    assert not (tmp_path / "set" / packing.WORK).exists()
    assert stop < 5 or done or stands


@pytest.mark.slow
def test_killed_processes_leave_a_set_that_can_be_finished(tmp_path):
    """SIGKILL at random moments, until one gets through: every file is that of a set packed in one go."""
    source = tmp_path / "text"
    source.mkdir()
    for number in range(8):
        lines(source / f"{number}.jsonl", [f"{number} {i} {text}" for i in range(300) for text in TEXTS])
    command = [sys.executable, "-m", "restrain", "data", "tokens", str(source), "--shard-size", "2M"]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "straight"), "--workers", "2"], check=True, capture_output=True)
    whole, kills, done = time.monotonic() - began, 0, False
    rng = random.Random(0)
    while not done:
        process = subprocess.Popen([*command, str(tmp_path / "set"), "--workers", "1"], stderr=subprocess.DEVNULL)
        try:
            # Longer and longer: so short that the first is killed on a machine that has become fast, and it ends on one
            # that has become slow.
            done = process.wait(whole * rng.uniform(0.15, 0.35) * (1 + kills / 2)) == 0
            assert done
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills
    assert content(tmp_path / "set") == content(tmp_path / "straight")


def test_a_finished_set_is_left_alone(tmp_path):
    source = lines(tmp_path / "text.jsonl", TEXTS)
    pack(source, tmp_path / "set", Settings())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    pack(source, tmp_path / "set", Settings())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before
    with pytest.raises(UserError, match="another token set"):
        pack(source, tmp_path / "set", Settings(seed=1))


def test_killed_between_the_manifest_and_the_end(tmp_path):
    source = lines(tmp_path / "text.jsonl", TEXTS)
    pack(source, tmp_path / "set", Settings())
    (tmp_path / "set" / packing.WORK).mkdir()
    pack(source, tmp_path / "set", Settings())
    assert not (tmp_path / "set" / packing.WORK).exists()


def test_one_text_is_cut_by_its_characters(tmp_path):
    text = "aé日" * 1001
    (tmp_path / "text.txt").write_text(text)
    for name in ("bytes", "chars"):
        pack(tmp_path / "text.txt", tmp_path / name, Settings(name, end="none", eval_share=Fraction(1, 10)))
        cut = int(len(text) * 0.9)
        assert texts_of(tmp_path / name, "train") == [text[:cut]]
        assert texts_of(tmp_path / name, "val") == [text[cut:]]


def test_tinyshakespeare_as_the_published_figures_split_it(tmp_path, shared):
    path = shared / "tinyshakespeare.txt"
    made = pack(path, tmp_path / "set", Settings("chars", eval_share=Fraction(1, 10)))
    assert (made.vocab_size, made.dtype) == (65, "u16")
    assert [shard.tokens for shard in made.shards] == [1_003_854, 111_540]
    text = path.read_text()
    numbers = {c: i for i, c in enumerate(sorted(set(text)))}
    tokens = np.array([numbers[c] for c in text], np.uint16)
    assert (tmp_path / "set" / "train-000000.bin").read_bytes() == tokens[:1_003_854].tobytes()
    assert (tmp_path / "set" / "val-000000.bin").read_bytes() == tokens[1_003_854:].tobytes()


def test_a_text_of_its_own_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("first\n\nsecond\n\n\n\nthird")
    (tmp_path / "b.txt").write_text("held")
    reading = Reading(separator="\n\n")
    pack(tmp_path / "a.txt", tmp_path / "set", Settings(reading=reading), evaluation=tmp_path / "b.txt")
    assert sorted(texts_of(tmp_path / "set", "train")) == ["first", "second", "third"]
    assert texts_of(tmp_path / "set", "val") == ["held"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=40), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_a_large_file_is_cut_between_lines(tmp_path_factory, texts, size):
    path = lines(tmp_path_factory.mktemp("lines") / "text.jsonl", texts)
    parts = cut_parts(list_files(path), size)
    assert [text for part in parts for text in read(part, Reading())] == [text for text in texts if text]


@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=60),
    st.integers(1, 200),
    st.booleans(),
    st.integers(0, 1),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_each_document_is_dealt_once(lengths, size, shuffle, end, data):
    cut = data.draw(st.integers(0, len(lengths)))
    counts = [np.array(part, np.int64) for part in (lengths[:cut], lengths[cut:])]
    parts = [Lengths(i, "train", part, part) for i, part in enumerate(counts)]
    dealt = deal(parts, None, shuffle, 0, size, end)
    found = [
        row for one in dealt for row in zip(one.part.tolist(), one.first.tolist(), one.tokens.tolist(), strict=True)
    ]
    expected = [(i, int(p[:j].sum()), int(n)) for i, p in enumerate(counts) for j, n in enumerate(p)]
    assert sorted(found) == expected
    assert shuffle or found == expected
    for one in dealt:  # only its last document may pass the bound
        assert (one.tokens[:-1] + end).sum() < size + 50


def test_a_cut_archive_is_never_a_shorter_text(tmp_path):
    text = lines(tmp_path / "text", TEXTS * 20).read_bytes()
    for name, packed in (("a.jsonl.gz", gzip.compress(text)), ("a.jsonl.zst", zstandard.compress(text))):
        path = tmp_path / name
        for length in (len(packed) // 2, len(packed) - 1):
            path.write_bytes(packed[:length])
            with pytest.raises(WorldError, match="damaged archive"):
                list(read(documents.Part((str(path),)), Reading()))


def test_the_place_of_bad_text_is_named(tmp_path):
    path = lines(tmp_path / "text.jsonl", TEXTS)
    with open(path, "ab") as file:
        file.write(b'{"text": 3}\n')
    with pytest.raises(UserError, match=r"text.jsonl, line 201 has no text under 'text'"):
        [list(read(part, Reading())) for part in cut_parts(list_files(path), 1000)]
    (tmp_path / "bad.txt").write_bytes(b"good\xffbad")
    with pytest.raises(WorldError, match="byte 0xff at offset 4"):
        pack(tmp_path / "bad.txt", tmp_path / "set", Settings())


def test_raw_tokens_are_described(tmp_path):
    tokens = np.array([3, 1, 9, 4, 9, 9, 2], "<u2")
    tokens.tofile(tmp_path / "train.bin")
    made = describe(tmp_path, "u16", None, 9)
    assert (made.vocab_size, made.shards[0].documents) == (10, 4)
    assert np.fromfile(tmp_path / "train.idx", "<u8").tolist() == [0, 3, 5, 6]
    (tmp_path / manifest.MANIFEST).unlink()
    with pytest.raises(WorldError, match="beyond --vocab-size 9"):
        describe(tmp_path, "u16", 9, None)


def test_one_process_at_a_time(tmp_path):
    import fcntl

    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "out" / ".packing").mkdir(parents=True)
    with open(tmp_path / "out" / ".packing" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being packed by another process"):
            packing.pack(tmp_path / "a.txt", tmp_path / "out", packing.Settings())


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": -1},
        {"vocab_size": 1.5},
        {"document_end": "x"},
        {"tokenizer": 5},
        {"shards": {"tokens": 2**70}},
        {"shards": {"tokens": None}},
        {"shards": {"name": 7}},
        {"shards": {"name": "../x.bin"}},
    ],
    ids=str,
)
def test_a_manifest_that_somebody_changed_is_told(tmp_path, change):
    (tmp_path / "a.txt").write_text("hello")
    pack(tmp_path / "a.txt", tmp_path / "out", Settings())
    path = tmp_path / "out" / manifest.MANIFEST
    record = json.loads(path.read_text())
    for key, value in change.items():
        record[key] = value if key != "shards" else [{**record[key][0], **value}]
    path.write_text(json.dumps(record))
    with pytest.raises(WorldError, match="is no manifest of a token set"):
        manifest.load(tmp_path / "out")
