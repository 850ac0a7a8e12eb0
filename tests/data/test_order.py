"""The order of samples and the groups of steps: frozen, complete, the same on every world."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restrain.data.expected import expected
from restrain.data.order import (
    ORDER_VERSION,
    Order,
    Plan,
    Segment,
    allowed_micro,
    allowed_worlds,
    check_micro,
    check_world,
    ranks_a_group,
    resolve_shuffle,
    spanning_worlds,
)
from restrain.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / f"order_v{ORDER_VERSION}.json"
COUNTS = [7, 1, 13, 20, 5, 4, 30, 2]

counts = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda c: sum(c) > 0)


def order_and_plan(case: dict) -> tuple[Order, Plan]:
    order = Order(COUNTS, case["seed"], case["lanes"], case["window"], case["shuffle"])
    return order, Plan(sum(COUNTS), case["batch"], case["group"], case["lanes"])


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["cases"], ids=lambda case: case["name"])
def test_golden(case):
    order, plan = order_and_plan(case["settings"])
    for epoch, values in case["order"].items():
        shard, j = order(int(epoch), np.arange(len(values)))
        assert np.stack([shard, j], 1).tolist() == values
    assert [plan.groups(step)[1].tolist() for step in range(3)] == case["groups"]


@settings(max_examples=150, deadline=None)
@given(counts, st.integers(0, 2**63), st.integers(1, 9), st.integers(1, 50), st.integers(0, 9), st.booleans())
def test_bijection_and_random_access(counts, seed, lanes, window, epoch, shuffle):
    samples = sum(counts)
    whole = np.stack(Order(counts, seed, lanes, window, shuffle)(epoch, np.arange(samples)), 1)
    assert sorted(map(tuple, whole.tolist())) == [(k, j) for k, n in enumerate(counts) for j in range(n)]
    other = Order(counts, seed, lanes, window, shuffle)
    for p in np.random.Generator(np.random.PCG64(epoch)).permutation(samples)[:20]:
        assert [int(x[0]) for x in other(epoch, np.array([p]))] == whole[p].tolist()


def test_shape_and_empty_positions():
    order = Order(COUNTS, 1, 4, 5)
    shard, j = order(0, np.arange(12).reshape(3, 4))
    assert shard.shape == j.shape == (3, 4)
    assert order(0, np.arange(0))[0].shape == (0,)
    for outside in (-1, sum(COUNTS)):
        with pytest.raises(IndexError, match="82 samples"):
            order(0, np.array([0, outside]))


@pytest.mark.parametrize(("lanes", "window"), [(1, 240), (1, 10**6)])
def test_each_meets_each_at_the_uniform_rate(lanes, window):
    """Over epochs, samples of one class-sorted shard meet in a group as often as chance says (CORE, trap 5)."""
    samples, group, epochs = 240, 8, 1200
    order, plan = Order([samples], 5, lanes, window), Plan(samples, 24, group, lanes)
    together = np.zeros((samples, samples))
    for epoch in range(epochs):
        for step in range(plan.steps_per_epoch):
            which, groups = plan.groups(epoch * plan.steps_per_epoch + step)
            assert which == epoch
            for j in order(epoch, groups)[1]:
                together[np.ix_(j, j)] += 1
    rate = together / epochs * (samples - 1) / (group - 1)
    halves = [rate[:120, :120], rate[:120, 120:], rate[120:, 120:]]
    for block in halves:
        off = block[~np.eye(120, dtype=bool)] if block is not halves[1] else block.ravel()
        assert off.mean() == pytest.approx(1.0, abs=0.01)
        assert abs(off - 1).max() < 6 * (1 / (epochs * (group - 1) / (samples - 1))) ** 0.5


def test_windows_mix_within_their_reach():
    """With lanes and windows, no sample moves further than a window in its lane, and neighbours are torn apart."""
    order = Order([1000] * 4, 2, 4, 100)
    shard, j = order(0, np.arange(4000))
    for lane in range(4):
        on_line = np.argsort(np.argsort(shard[lane::4] * 1000 + j[lane::4]))
        assert len(set(shard[lane::4].tolist())) == 1
        assert abs(on_line - np.arange(1000)).max() < 100
        assert (np.diff(on_line) == 1).mean() < 0.05


def test_epochs_and_seeds_differ():
    orders = [Order([500], seed, 1, 500)(epoch, np.arange(500))[1] for seed in (0, 1) for epoch in (0, 1)]
    assert all((a != b).mean() > 0.9 for i, a in enumerate(orders) for b in orders[:i])


def test_unshuffled_is_sequential():
    shard, j = Order(COUNTS, 0, 1, 10**6, shuffle=False)(3, np.arange(sum(COUNTS)))
    assert list(zip(shard, j, strict=True)) == [(k, i) for k, n in enumerate(COUNTS) for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 5), st.integers(0, 30))
def test_every_world_sees_the_same_groups(per, group, lanes, step):
    batch = 12 * per * group
    plan = Plan(20 * batch + 5, batch, group, lanes)
    epoch, canonical = plan.groups(step)
    for world in [*allowed_worlds(batch, group), *spanning_worlds(batch, group)]:
        for micro in allowed_micro(batch, group, world):
            rows = {}
            for rank in range(world):
                where, parts = plan.local(step, rank, world, micro)
                assert where == epoch
                assert [len(p) for _, p in parts] == [micro] * (batch // world // micro)
                rows.update({first + i: p for first, part in parts for i, p in enumerate(part.tolist())})
            assert [rows[i] for i in range(batch)] == canonical.ravel().tolist()


def test_groups_span_ranks_that_follow_each_other_in_equal_parts():
    batch, group = 24, 12
    plan = Plan(100, batch, group, 1)
    assert (allowed_worlds(batch, group), spanning_worlds(batch, group)) == ([1, 2], [4, 6, 8, 12, 24])
    groups = plan.groups(3)[1]
    for world in spanning_worlds(batch, group):
        ranks = ranks_a_group(batch, group, world)
        assert (ranks, allowed_micro(batch, group, world)) == (world // 2, [batch // world])
        for rank in range(world):
            ((first, positions),) = plan.local(3, rank, world, batch // world)[1]
            assert first == rank * batch // world
            part = rank % ranks * (group // ranks)
            assert positions.tolist() == groups[rank // ranks, part : part + group // ranks].tolist()
    assert [ranks_a_group(batch, group, world) for world in (1, 2)] == [1, 1]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4000))
def test_the_worlds_that_work_are_those_that_divide_groups_or_each_group(groups, group, world):
    batch = groups * group
    whole, parts = groups % world == 0, world % groups == 0 and group % (world // groups) == 0
    if whole or parts:
        check_world(batch, group, world)
        assert batch % world == 0
        assert batch // world in allowed_micro(batch, group, world)
    else:
        with pytest.raises(UserError, match=f"^{world} processes cannot share"):
            check_world(batch, group, world)


def test_what_cannot_be_cut_is_refused_with_what_can():
    works = r"that work: 1, 2, 4; with groups that span processes, 8, 16, 32, 64\."
    for world in (3, 6, 12, 65, 128):
        with pytest.raises(UserError, match=works):
            check_world(64, 16, world)
    with pytest.raises(UserError, match=r"that work: 1, 2, 4\. Otherwise"):  # a group of one row has no parts
        check_world(4, 1, 8)
    with pytest.raises(UserError, match=r"a group spans 2 processes, each of which takes its 8 rows at once"):
        check_micro(64, 16, 8, 16)


def test_steps_take_each_position_once_but_the_tail():
    plan = Plan(103, 10, 5, 3)
    for epoch in range(2):
        taken = [p for s in range(10) for p in plan.groups(epoch * 10 + s)[1].ravel().tolist()]
        assert sorted(taken) == list(range(100))
        assert plan.place(epoch * 10 + 3) == (epoch, 30)


def test_planning_many_steps_equals_planning_each():
    plan = Plan(103, 10, 5, 3, [Segment(13, 1, 47, 10, 5)])
    step, seen = 0, []
    while step < 40:
        count = plan.steps_together(step, 7)
        epoch, rows = plan.rows(step, count, 1, 2)
        seen += [(epoch, row.tolist()) for row in rows]
        step += count
    for step, (epoch, row) in enumerate(seen):
        where, parts = plan.local(step, 1, 2, 5)
        assert (where, [p for _, part in parts for p in part.tolist()]) == (epoch, row)


def test_a_segment_moves_the_data():
    plan = Plan(100, 10, 5, 1, [Segment(3, 0, 70, 20, 5)])
    assert [plan.place(s) for s in range(6)] == [(0, 0), (0, 10), (0, 20), (0, 70), (1, 0), (1, 20)]
    assert plan.groups(3)[1].shape == (4, 5)


def test_refusals_name_what_works():
    with pytest.raises(
        UserError, match=r"batch.group=5 does not divide batch.global=64\. Groups that work: 1, 2, 4, 8"
    ):
        Plan(1000, 64, 5, 1)
    with pytest.raises(UserError, match="more than the 10 training samples"):
        Plan(10, 64, 16, 1)
    with pytest.raises(UserError, match=r"3 processes cannot share .* work: 1, 2, 4; with"):
        Plan(1000, 64, 16, 1).local(0, 0, 3, 16)
    with pytest.raises(UserError, match=r"batch.micro=24: .* Sizes that work: 16, 32\."):
        Plan(1000, 64, 16, 1).local(0, 0, 2, 24)
    with pytest.raises(UserError, match=r"data.lanes=0"):
        Order([5], 0, 0, 5)


def test_auto_depends_on_the_size_of_the_set_alone():
    assert resolve_shuffle(2_000_000) == (1, 2_000_000)
    assert resolve_shuffle(2_000_001) == (64, 16384)
    assert resolve_shuffle(100, 4, 10) == (4, 10)


def test_the_order_of_half_a_million_shards_is_small():
    """5 billion samples, 500,000 shards: nothing of the size of the set is ever made."""
    import tracemalloc

    counts = np.full(500_000, 10_000)
    tracemalloc.start()
    order = Order(counts, 0, 64, 16384)
    plan = Plan(order.samples, 4096, 32, 64)
    for step in (0, 1, plan.steps_per_epoch - 1, plan.steps_per_epoch):
        epoch, rows = plan.rows(step, 1, 0, 8)
        assert order(epoch, rows)[0].shape == (1, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert order.samples == 5_000_000_000
    assert peak < 100e6


def test_expected_hash_follows_replacements():
    order, plan = Order(COUNTS, 1, 1, 100), Plan(sum(COUNTS), 8, 2, 1)
    table = [np.arange(n, dtype=np.uint32) * 7 + k for k, n in enumerate(COUNTS)]
    plain = expected(order, plan, table.__getitem__)
    shard, j = (int(x[0, 0]) for x in order(0, plan.rows(0)[1]))
    swapped = expected(order, plan, table.__getitem__, {(shard, j): (j + 1) % COUNTS[shard]})
    assert plain(0) == expected(order, plan, table.__getitem__)(0) != swapped(0)
    assert plain(1) == swapped(1)
