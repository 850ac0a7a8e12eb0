"""Repeated augmentation: each image of an epoch r times, in one step, in different groups, augmented anew."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from restrain import draws
from restrain.data import sets
from restrain.data.expected import expected
from restrain.data.order import Order, Plan, Segment, allowed_micro, allowed_worlds
from restrain.data.repeats import dealt
from restrain.errors import UserError
from tests.data.making import contents, section, train_loader, write_shards

COUNTS = [37, 5, 61, 40, 57]  # 200
SAMPLES = sum(COUNTS)


@st.composite
def cases(draw):
    repeats, group, groups = draw(st.integers(2, 5)), draw(st.integers(1, 6)), draw(st.integers(2, 12))
    assume(groups >= repeats)
    assume(group * groups <= SAMPLES)
    lanes, window = draw(st.integers(1, 5)), draw(st.integers(1, 80))
    order = Order(COUNTS, draw(st.integers(0, 99)), lanes, window, repeats=repeats)
    return order, Plan(SAMPLES, group * groups, group, lanes, repeats=repeats)


def epoch_of(order, plan, epoch):
    """[(step, group, sample)] of every row of an epoch."""
    rows = []
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        which, groups = plan.groups(step)
        assert which == epoch
        shard, j = order(epoch, groups)
        rows += [(step, g, (int(a), int(b))) for g in range(len(groups)) for a, b in zip(shard[g], j[g], strict=True)]
    return rows


@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(0, 3))
def test_copies(case, epoch):
    order, plan = case
    repeats, rows = order.repeats, epoch_of(*case, epoch)
    steps = plan.steps_per_epoch
    assert len(rows) == steps * plan.batch
    # Every sample of the epoch r times, but for the last, which the epoch's end may cut.
    times = Counter(sample for *_, sample in rows)
    cut = steps * plan.batch % repeats
    assert Counter(times.values()) == Counter({repeats: steps * plan.batch // repeats, **({cut: 1} if cut else {})})
    # Never twice in a group.
    assert max(Counter(rows).values()) == 1
    # In one step; where r does not divide the batch, one sample's copies may go on in the next.
    where = {}
    for step, _, sample in rows:
        where.setdefault(sample, set()).add(step)
    spread = [max(found) - min(found) for found in where.values()]
    assert max(spread) <= 1
    straddling = sum(spread)
    assert straddling <= (steps if plan.batch % repeats else 0)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 40), st.data())
def test_worlds_agree(case, step, data):
    _, plan = case
    world = data.draw(st.sampled_from(allowed_worlds(plan.batch, plan.group)))
    micro = data.draw(st.sampled_from(allowed_micro(plan.batch, plan.group, world)))
    _, groups = plan.groups(step)
    parts = [part for rank in range(world) for part in plan.local(step, rank, world, micro)[1]]
    assert np.array_equal(np.concatenate([positions for _, positions in parts]), groups.reshape(-1))
    assert [first for first, _ in parts] == list(range(0, plan.batch, micro))
    assert sorted(groups.reshape(-1).tolist()) == sorted(set(groups.reshape(-1).tolist()))


def test_each_epoch_shows_other_images():
    order, plan = Order([1000], 3, 1, 1000, repeats=4), Plan(1000, 100, 10, 1, repeats=4)
    shown = [{sample for *_, sample in epoch_of(order, plan, epoch)} for epoch in range(12)]
    assert {len(one) for one in shown} == {250}
    assert len(set.union(*shown)) > 940  # 1 - 0.75^12 of 1000 is 968
    assert all(len(a & b) < 100 for a, b in itertools.pairwise(shown))


def test_once_is_as_without():
    """repeats=1 is the frozen order and plan (tests/golden/order_v1.json)."""
    assert np.array_equal(dealt(96, 8, 1), np.arange(96))
    order, plan = Order(COUNTS, 1, 3, 20), Plan(SAMPLES, 24, 6, 3)
    again, same = Order(COUNTS, 1, 3, 20, repeats=1), Plan(SAMPLES, 24, 6, 3, repeats=1)
    for step in range(20):
        assert np.array_equal(plan.groups(step)[1], same.groups(step)[1])
        assert np.array_equal(order(step, plan.rows(0)[1]), again(step, plan.rows(0)[1]))


def test_copies_stay_near():
    """The copies of a sample are in r groups that follow each other, so few ranks read it."""
    plan = Plan(10_000, 960, 8, 4, repeats=3)
    _, groups = plan.groups(2)
    where = {}
    for g, row in enumerate(groups):
        for position in row.tolist():
            where.setdefault(position // 3, []).append(g)
    assert {max(found) - min(found) for found in where.values()} == {2}


def test_a_changed_batch_goes_on_where_the_old_one_was():
    order = Order(COUNTS, 5, 1, SAMPLES, repeats=3)
    plan = Plan(SAMPLES, 20, 4, 1, [Segment(3, 0, 60, 30, 5)], repeats=3)
    samples = Counter(
        (int(a), int(b))
        for step in range(6)
        for a, b in zip(*(x.reshape(-1) for x in order(0, plan.groups(step)[1])), strict=True)
    )
    assert set(samples.values()) == {3}
    assert samples.total() == 150
    with pytest.raises(UserError, match=r"batch.global=30 has 2 of batch.group=15"):
        Plan(SAMPLES, 20, 4, 1, [Segment(3, 0, 60, 30, 15)], repeats=3)


def test_too_few_groups():
    with pytest.raises(
        UserError,
        match=r"data.repeats=3: .* batch.global=32 has 2 of batch.group=16\. Groups that work: 1, 2, 4, 8\. With these "
        r"groups, data.repeats is at most 2\.",
    ):
        Plan(100, 32, 16, 1, repeats=3)
    Plan(100, 32, 16, 1, repeats=2)


# --------------------------------------------------------------------------------------------------------- the loader


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = write_shards(tmp_path_factory.mktemp("shards"), 4, 11)
    return sets.open_source(section("webdataset", root), "train", classes=5)


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_the_same_rows_on_any_world_and_from_any_start(shards, repeats):
    straight = contents(train_loader(shards, repeats=repeats))
    for world, micro, start in [(1, 2, 3), (2, 4, 0), (2, 2, 7), (4, 2, 4)]:
        parts = [
            train_loader(shards, repeats=repeats, world=world, rank=rank, micro=micro, start=start)
            for rank in range(world)
        ]
        found = sorted(row for part in parts for row in contents(part))
        assert found == [row for row in straight if row[0] >= start]


def test_each_copy_has_its_own_key(shards):
    """Recomputed without the loader: sample of the slot, augmented by (seed, AUGMENT, epoch, slot, copy)."""
    loader = train_loader(shards, repeats=3, seed=9, stop=4)
    images = {}
    for batch in loader:
        epoch, ((_, positions),) = loader.plan.local(batch.step, 0, 1, 8)
        (micro,) = batch.micros
        for i, position in enumerate(positions.tolist()):
            shard, j = (int(x[0]) for x in loader.order(epoch, positions[i : i + 1]))
            out = np.empty(loader.pipeline.shape, np.uint8)
            key = draws.key(9, draws.Purpose.AUGMENT, epoch, position // 3, position % 3)
            loader.pipeline(shards.read(shard, j).data, key, out)
            assert np.array_equal(micro.images[i].permute(1, 2, 0).numpy(), out)
            images.setdefault((epoch, position // 3), []).append(out.tobytes())
    assert all(len(set(copies)) == len(copies) for copies in images.values())


def test_the_ledger_can_be_recomputed(shards):
    loaders = [train_loader(shards, repeats=3, world=2, rank=rank, micro=4) for rank in range(2)]
    audit = expected(loaders[0].order, loaders[0].plan, shards.crcs)
    for batches in zip(*loaders, strict=True):
        total = 0
        for batch, loader in zip(batches, loaders, strict=True):
            _, parts = loader.plan.local(batch.step, loader.rank, 2, 4)
            for micro, (_, positions) in zip(batch.micros, parts, strict=True):
                total += int(draws.extend(micro.prefix, positions).sum(dtype=np.uint64))
        assert total % 2**64 == audit(batches[0].step)
    other = expected(Order(shards.counts, 3, 1, 44), Plan(44, 8, 2, 1), shards.crcs)
    assert other(0) != audit(0)
