"""The sequences of the adding and the copy problem: what they hold, and that a sample depends on its number alone."""

import zlib

import numpy as np
import pytest
import torch

from restrain.data.order import Order, Plan
from restrain.data.rows import SequenceRows
from restrain.data.sequences import BLANK, MEMORY, RECALL, SYMBOLS, VOCABULARY, SequenceSource
from restrain.data.text.loader import TokenEvalLoader
from restrain.errors import UserError


def rows(source: SequenceSource, *j: int):
    return source.rows(np.zeros(len(j), np.int64), np.array(j))


def test_the_adding_problem_is_that_of_1997():
    length = 60
    x_NT2, target_N, _ = rows(SequenceSource("adding", "train", length, 4000), *range(4000))
    assert x_NT2.dtype == target_N.dtype == np.float32
    values, markers = x_NT2[..., 0], x_NT2[..., 1]
    assert values.min() >= -1.0
    assert values.max() <= 1.0
    assert abs(values.mean()) < 0.01
    assert (markers[:, [0, -1]] == -1.0).all()
    first_seen, second_seen = set(), set()
    for value, marker, target in zip(values, markers, target_N, strict=True):
        marked = np.flatnonzero(marker == 1.0)
        assert len(marked) in (1, 2)  # one of them may fall on the first pair, whose marker stays -1
        assert marked.max() < length // 2
        assert len(marked) == 1 or marked.min() < 10
        assert set(np.flatnonzero(marker)) == {0, length - 1, *marked}
        assert target == pytest.approx(0.5 + value[marked].sum() / 4.0, abs=1e-7)
        first_seen.add(int(marked.min()) if len(marked) == 2 else 0)
        second_seen.add(int(marked.max()))
    assert first_seen == set(range(10))
    assert second_seen >= set(range(10, length // 2))
    share_on_the_first_pair = ((markers == 1.0).sum(1) == 1).mean()
    assert share_on_the_first_pair == pytest.approx(1 / 10 + 0.9 / (length // 2 - 1), abs=0.02)


def test_the_copy_problem():
    length = 50
    tokens, nothing, _ = rows(SequenceSource("copy", "train", length, 300), *range(300))
    assert tokens.shape == (300, length + 1)
    assert nothing.shape == (300, 0)
    assert np.array_equal(tokens[:, :MEMORY], tokens[:, -MEMORY:])
    assert (tokens[:, MEMORY : -MEMORY - 1] == BLANK).all()
    assert (tokens[:, -MEMORY - 1] == RECALL).all()
    assert set(tokens[:, :MEMORY].ravel()) == set(range(SYMBOLS))
    assert tokens.max() < VOCABULARY


@pytest.mark.parametrize("task", ["adding", "copy"])
def test_a_sample_is_a_function_of_its_number_the_split_and_the_seed(task):
    source = SequenceSource(task, "train", 40, 100)
    stored, labels, crcs = rows(source, *range(100))
    again, again_labels, again_crcs = rows(SequenceSource(task, "train", 40, 100), 7, 3, 7)
    assert np.array_equal(again, stored[[7, 3, 7]])
    assert np.array_equal(again_labels, labels[[7, 3, 7]])
    assert np.array_equal(again_crcs, crcs[[7, 3, 7]])
    longer = SequenceSource(task, "train", 40, 1000)  # a larger set begins with the same samples
    assert np.array_equal(rows(longer, *range(100))[0], stored)
    for other in (SequenceSource(task, "eval", 40, 100), SequenceSource(task, "train", 40, 100, seed=1)):
        assert not set(rows(other, *range(100))[2]) & set(crcs)
        assert other.fingerprint != source.fingerprint
    assert len(set(crcs)) == 100
    assert longer.fingerprint != source.fingerprint == SequenceSource(task, "train", 40, 100).fingerprint


@pytest.mark.parametrize("task", ["adding", "copy"])
def test_what_is_read_is_what_the_crcs_are_of(task):
    source = SequenceSource(task, "eval", 40, 2500)
    assert source.crcs(0).shape == (2500,)
    for j in (0, 1024, 2499):
        sample = source.read(0, j)
        assert np.array_equal(sample.data, rows(source, j)[0][0])
        assert sample.crc == zlib.crc32(np.ascontiguousarray(sample.data).tobytes()) == source.crcs(0)[j]


def test_samples_do_not_change_from_one_version_to_the_next():
    """Fingerprints of runs that exist, and numbers of the first samples."""
    _, target_N, crcs = rows(SequenceSource("adding", "train", 200, 50000), 0, 49999)
    assert crcs.tolist() == [3494347341, 32651400]
    assert target_N[0] == pytest.approx(0.61177576, abs=1e-8)
    assert rows(SequenceSource("copy", "eval", 60, 10), 1)[2].tolist() == [1760895104]


@pytest.mark.parametrize(("task", "length"), [("adding", 19), ("copy", 20)])
def test_too_short(task, length):
    with pytest.raises(UserError, match=rf"data\.length={length}: .* at least {length + 1} steps"):
        SequenceSource(task, "train", length, 10)
    SequenceSource(task, "train", length + 1, 10).read(0, 0)


def test_the_training_loader_hands_over_what_order_and_plan_say():
    from restrain.data.loader import TrainLoader

    source = SequenceSource("adding", "train", 30, 64)
    order, plan = Order(source.counts, 5, 1, 64), Plan(64, 16, 4, 1)
    loader = TrainLoader(
        source, order, plan, SequenceRows(30), seed=5, rank=0, world=1, micro=8, start=0, stop=4, threads=2
    )
    seen = set()
    for batch in loader:
        _, positions = plan.rows(batch.step, 1, 0, 1)
        _, j = order(batch.epoch, positions[0])
        x_NT2, target_N, _ = rows(source, *j)
        assert [micro.images.dtype for micro in batch.micros] == [torch.float32] * 2
        assert np.array_equal(np.concatenate([micro.images.numpy() for micro in batch.micros]), x_NT2)
        assert np.array_equal(np.concatenate([micro.labels.numpy() for micro in batch.micros]), target_N)
        seen.update(j)
    assert seen == set(range(64))


def test_the_copy_problem_goes_through_the_loaders_of_tokens():
    source = SequenceSource("copy", "eval", 30, 10)
    loader = TokenEvalLoader(source, rank=0, world=1, batch=4, threads=1)
    got = [batch.tokens[batch.valid].clone() for batch in loader]
    assert np.array_equal(torch.cat(got).numpy(), rows(source, *range(10))[0])
