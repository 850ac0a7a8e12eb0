"""A plain text as data: nanoGPT's split and vocabulary, windows from elsewhere each epoch, every token evaluated."""

import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from restrain.data.known import known_samples
from restrain.data.loader import EvalLoader, TrainLoader
from restrain.data.order import Plan
from restrain.data.rows import TokenRows
from restrain.data.text.nothing import NOTHING
from restrain.data.text.plain import ShiftedOrder, TextSource, open_text
from restrain.errors import UserError, WorldError

TEXT = "".join(chr(97 + (7 * i * i + i // 3) % 26) for i in range(1003)) + "é\n"
T = 16


def section(**more: Any) -> Any:
    plain = {"name": "text", "train": "text.txt", "eval": None, "holdout": 0.1, "tokenizer": "characters", "context": T}
    return SimpleNamespace(**plain | more)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def opened(root: Path, split: str, **more: Any) -> TextSource:
    source = open_text(section(**more), root, split)
    assert source is not None
    return source


def test_tinyshakespeare_is_split_as_nanogpt_splits_it(shared: Path) -> None:
    named = section(train="tinyshakespeare.txt", context=64)
    train, held = open_text(named, shared, "train"), open_text(named, shared, "eval")
    assert train is not None
    assert held is not None
    assert (train.vocabulary, train.length, held.length) == (65, 1_003_854, 111_540)
    text = (shared / "tinyshakespeare.txt").read_text()
    assert train.tokenizer.decode(train._tokens[:300]) == text[:300]
    assert held.tokenizer.decode(held._tokens[:300]) == text[1_003_854 : 1_003_854 + 300]
    assert "".join(sorted(set(text))) == train.describe_tokenizer()["vocabulary"]


def test_each_epoch_has_its_windows_from_another_place(root: Path) -> None:
    source = opened(root, "train")
    windows = int(source.counts[0])
    assert windows == source.length // T - 1
    assert known_samples(section(root=str(root))) == (windows, f"{source.length} tokens of text.txt, {T} each")
    order = ShiftedOrder(T, source.counts, 5, 1, windows)
    offsets = set()
    for epoch in range(40):
        shard, first = order(epoch, np.arange(windows))
        assert (shard == 0).all()
        offset = order.offset(epoch)
        assert sorted(first.tolist()) == [offset + T * j for j in range(windows)]  # each window once
        assert first.max() + T + 1 <= source.length
        offsets.add(offset)
    assert len(offsets) > 10
    still = ShiftedOrder(T, source.counts, 5, 1, windows, False)
    assert still(3, np.arange(windows))[1].tolist() == [T * j for j in range(windows)]


def test_the_last_windows_exist_at_every_offset(root: Path) -> None:
    source = opened(root, "train")
    last = (T - 1) + T * (int(source.counts[0]) - 1)
    stored, labels, crcs = source.rows(np.zeros(1, np.int64), np.array([last]))
    assert stored.shape == (1, T + 1)
    assert labels.shape == (1, 0)
    assert stored[0].tolist() == source._tokens[last : last + T + 1].tolist()
    assert int(crcs[0]) == zlib.crc32(stored.tobytes()) == int(source.crcs(0)[last]) == source.read(0, last).crc


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_loader_hands_over_these_windows_on_any_world(root: Path, world: int) -> None:
    source = opened(root, "train")
    windows = int(source.counts[0])
    order, plan = ShiftedOrder(T, source.counts, 5, 1, windows), Plan(windows, 8, 1, 1)
    found: dict[tuple[int, int], list[int]] = {}
    for rank in range(world):
        settings: dict[str, Any] = {"seed": 5, "rank": rank, "world": world, "micro": 8 // world, "threads": 1}
        loader = TrainLoader(source, order, plan, TokenRows(T, False), start=3, stop=20, **settings)
        for batch in loader:
            for micro in batch.micros:
                assert micro.labels.shape == (8 // world, 0)
                for i, row in enumerate(micro.images.tolist()):
                    found[batch.step, micro.row + i] = row
    for step in range(3, 20):
        epoch, positions = plan.rows(step)
        _, first = order(epoch, positions[0])
        for row, at in enumerate(first):
            assert found[step, row] == source._tokens[at : at + T + 1].tolist()


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_an_evaluation_says_every_token_but_the_first_once(root: Path, batch: int) -> None:
    source = opened(root, "eval")
    said = []
    for world, rank in [(2, 0), (2, 1)]:
        loader = EvalLoader(source, TokenRows(T, False), rank=rank, world=world, batch=batch, threads=1)
        for part in loader:
            said += [(int(i), row.tolist()) for i, row, v in zip(part.index, part.images, part.valid, strict=True) if v]
    targets = [token for _, row in sorted(said) for token in row[1:] if token != NOTHING]
    whole = source.tokenizer.finish(source.tokenizer.encode([TEXT])[0])  # type: ignore[union-attr]
    assert targets == whole[904 + 1 :].tolist()


def test_bytes_are_those_of_utf8(root: Path) -> None:
    source = opened(root, "eval", tokenizer="bytes")
    assert source.vocabulary == 256
    content = TEXT.encode()
    assert bytes(source._tokens[: source.length].astype(np.uint8)) == content[int(len(content) * 0.9) :]


def test_a_text_of_its_own_to_evaluate_on(root: Path) -> None:
    (root / "held.txt").write_text("abcabcabcabcabcabcabc")
    train, held = opened(root, "train", eval="held.txt"), opened(root, "eval", eval="held.txt")
    assert (train.length, held.length) == (len(TEXT), 21)
    assert train.vocabulary == held.vocabulary
    (root / "held.txt").write_text("abcßabc")
    with pytest.raises(UserError, match="has the character 'ß'"):
        open_text(section(eval="held.txt"), root, "eval")


def test_what_identifies_a_text(root: Path) -> None:
    plain = opened(root, "train").fingerprint
    assert opened(root, "train").fingerprint == plain
    assert opened(root, "train", context=8).fingerprint != plain
    assert opened(root, "train", holdout=0.2).fingerprint != plain
    (root / "text.txt").write_text("b" + TEXT[1:])
    assert opened(root, "train").fingerprint != plain


def test_without_a_holdout_nothing_is_evaluated(root: Path) -> None:
    assert open_text(section(holdout=0.0), root, "eval") is None
    assert opened(root, "train", holdout=0.0).length == len(TEXT)


def test_what_cannot_be(root: Path) -> None:
    with pytest.raises(UserError, match="training takes two windows"):
        open_text(section(context=600), root, "train")
    for text, told in (("", "text.txt is empty"), ("a", "text.txt is 'a' alone"), ("aaaa", "text.txt is 'a' alone")):
        (root / "short.txt").write_text(text)
        with pytest.raises(UserError, match=told.replace("text", "short", 1)):
            open_text(section(train="short.txt"), root, "train")
    (root / "short.txt").write_text("ab" * 10)
    with pytest.raises(UserError, match=r"18 tokens to train on, .* Use data\.context=9 or less"):
        open_text(section(train="short.txt", context=10), root, "train")
    open_text(section(train="short.txt", context=9), root, "train")
    (root / "short.txt").write_text("ab")
    with pytest.raises(UserError, match="has 1 token to train on, too few for any"):
        open_text(section(train="short.txt", context=1), root, "train")
    with pytest.raises(UserError, match=r"has 1 token to evaluate on, .* Use a larger data\.holdout"):
        open_text(section(train="short.txt", context=1), root, "eval")
    with pytest.raises(UserError, match=r"data.train: .*gone.txt cannot be read"):
        open_text(section(train="gone.txt"), root, "train")
    (root / "text.txt").write_bytes(b"abc\xff")
    with pytest.raises(WorldError, match="no UTF-8 from byte 3 on"):
        open_text(section(), root, "train")
