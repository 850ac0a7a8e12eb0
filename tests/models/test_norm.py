"""Grouped BatchNorm and staged statistics against torch's own BatchNorm."""

import copy

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from restrain.models import GroupedBatchNorm2d, StagedStatistics, build_model, freeze, set_group
from restrain.models.norm import grouped_batch_norm


def images(rows: int, chans: int = 3, pixels: int = 4, seed: int = 0, dtype=torch.float64) -> Tensor:
    x = torch.randn(rows, chans, pixels, pixels, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return (2 * x + 1).contiguous(memory_format=torch.channels_last)


def norm(chans: int = 3, seed: int = 0, **kwargs) -> GroupedBatchNorm2d:
    made = GroupedBatchNorm2d(chans, dtype=torch.float64, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*made.parameters(), made.running_mean, made.running_var]:
            assert tensor is not None
            tensor.copy_(torch.rand(chans, generator=generator) + 0.5)
    return made


def twin(grouped: GroupedBatchNorm2d) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(grouped.num_features, momentum=grouped.momentum, dtype=torch.float64)
    made.load_state_dict(grouped.state_dict())
    return made


def assert_same_state(first: nn.Module, second: nn.Module, rtol: float = 0.0) -> None:
    expected, found = first.state_dict(), second.state_dict()
    assert list(expected) == list(found)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=rtol, msg=name)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_without_a_group_it_is_torchs_batch_norm(training, momentum):
    ours = norm(momentum=momentum).train(training)
    theirs = twin(ours).train(training)
    for seed in range(3):
        x = images(8, seed=seed)
        assert torch.equal(ours(x), theirs(x))
    assert_same_state(theirs, ours)


@pytest.mark.parametrize("pixels", [2, 8])
@pytest.mark.parametrize("groups", [2, 3])
def test_groups_are_normalised_as_if_each_were_alone(groups, pixels):
    grouped = norm()
    x = images(groups * 4, pixels=pixels).requires_grad_()
    upstream = images(groups * 4, pixels=pixels, seed=1)
    grouped.group = 4
    y = grouped(x)
    found = torch.autograd.grad(y, [x, grouped.weight, grouped.bias], upstream)

    apart = [F.batch_norm(part, None, None, grouped.weight, grouped.bias, True) for part in x.split(4)]
    expected = torch.autograd.grad(apart, [x, grouped.weight, grouped.bias], upstream.split(4))
    torch.testing.assert_close(y, torch.cat(apart), rtol=1e-12, atol=1e-12)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_gradients_agree_with_finite_differences():
    weight, bias = (torch.rand(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    x = images(4, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: grouped_batch_norm(*inputs, 1e-5, 2)[0], (x, weight, bias))


def test_running_statistics_move_by_the_mean_over_the_groups():
    grouped = norm()
    grouped.group = 4
    before = copy.deepcopy(grouped)
    x = images(12)
    grouped(x)
    means = torch.stack([part.mean((0, 2, 3)) for part in x.split(4)]).mean(0)
    variances = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in x.split(4)]).mean(0)
    torch.testing.assert_close(grouped.running_mean, 0.9 * before.running_mean + 0.1 * means, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grouped.running_var, 0.9 * before.running_var + 0.1 * variances, rtol=1e-12, atol=1e-12)
    assert grouped.num_batches_tracked == 1


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(4)), within=st.permutations(range(3)))
def test_order_of_groups_and_of_rows_inside_them_is_free(order, within):
    x = images(12)
    weight, bias = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    rows = torch.tensor([group * 3 + row for group in order for row in within])
    y, statistics = grouped_batch_norm(x, weight, bias, 1e-5, 3)
    y_moved, statistics_moved = grouped_batch_norm(x[rows], weight, bias, 1e-5, 3)
    torch.testing.assert_close(y_moved, y[rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics_moved, statistics[:, list(order)], rtol=1e-12, atol=1e-12)


def test_a_group_does_not_see_another():
    grouped = norm()
    grouped.group = 4
    x, other = images(8), images(8, seed=1)
    x[4:], kept = other[4:], grouped(x)[:4]
    assert torch.equal(grouped(x)[:4], kept)


def test_mixed_precision_keeps_float32_statistics():
    grouped = GroupedBatchNorm2d(3)
    grouped.group = 4
    staged = StagedStatistics(grouped)
    y = grouped(images(8, dtype=torch.bfloat16))
    staged.accumulate()
    assert y.dtype == torch.bfloat16
    assert staged.sums.dtype == torch.float32
    expected = images(8, dtype=torch.bfloat16).float()
    torch.testing.assert_close(staged.sums[:3] / 2, expected.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_rows_that_are_no_whole_groups_are_refused():
    grouped = norm()
    grouped.group = 4
    with pytest.raises(ValueError, match="6 rows cannot be cut into BatchNorm groups of 4"):
        grouped(images(6))
    with pytest.raises(ValueError, match="at least one row"):
        set_group(grouped, 0)


# ------------------------------------------------------------------------------------------------------- staging


def staged_step(model: nn.Module, staged: StagedStatistics, x: Tensor, micro: int, groups: int) -> None:
    for part in x.split(micro):
        model(part)
        staged.accumulate()
    staged.commit(groups)


@settings(max_examples=20, deadline=None)
@given(groups=st.integers(1, 6), data=st.data())
def test_the_micro_batch_does_not_matter(groups, data):
    micro = data.draw(st.sampled_from([k for k in range(1, groups + 1) if groups % k == 0])) * 4
    x = images(groups * 4)
    one, other = norm(), norm()
    for model, rows in ((one, 4), (other, micro)):
        model.group = 4
        staged_step(model, StagedStatistics(model), x, rows, groups)
    assert_same_state(one, other, rtol=1e-12)


def test_one_group_a_step_is_torchs_update():
    ours = norm()
    theirs = twin(ours)
    staged = StagedStatistics(ours)
    for seed in range(5):
        x = images(8, seed=seed)
        assert torch.equal(ours(x), theirs(x))
        staged.accumulate()
        staged.commit(1)
    assert_same_state(theirs, ours, rtol=1e-12)


def test_ranks_reduce_to_the_run_of_one_process():
    x = images(16)
    one, ranks = norm(), [norm(), norm()]
    one.group = 4
    staged_step(one, StagedStatistics(one), x, 16, 4)
    staged = [StagedStatistics(rank) for rank in ranks]
    for rank, statistics, part in zip(ranks, staged, x.split(8), strict=True):
        rank.group = 4
        rank(part)
        statistics.accumulate()
    total = staged[0].sums + staged[1].sums
    for rank, statistics in zip(ranks, staged, strict=True):
        statistics.sums.copy_(total)
        statistics.commit(4)
        assert_same_state(one, rank, rtol=1e-12)


@pytest.mark.parametrize("rows", [4, 8])
def test_forward_alone_moves_nothing_and_may_be_repeated(rows):
    grouped = norm()
    grouped.group = 4
    before = copy.deepcopy(grouped.state_dict())
    staged = StagedStatistics(grouped)
    grouped(images(rows))
    once = grouped.scratch.clone()
    grouped(images(rows))
    assert torch.equal(grouped.scratch, once)
    assert not staged.sums.any()
    assert all(torch.equal(before[name], tensor) for name, tensor in grouped.state_dict().items())


@pytest.mark.parametrize("rows", [4, 8])
def test_a_masked_step_leaves_no_trace(rows):
    grouped = norm()
    grouped.group = 4
    clean = copy.deepcopy(grouped)
    staged, staged_clean = StagedStatistics(grouped), StagedStatistics(clean)
    before = copy.deepcopy(grouped.state_dict())
    grouped(images(rows) * float("nan"))
    staged.accumulate()
    staged.commit(rows // 4, ok=torch.tensor(False))
    assert all(torch.equal(before[name], tensor) for name, tensor in grouped.state_dict().items())
    for model, statistics in ((grouped, staged), (clean, staged_clean)):
        model(images(rows))
        statistics.accumulate()
        statistics.commit(rows // 4, ok=torch.tensor(True))
    assert_same_state(clean, grouped)
    assert grouped.num_batches_tracked == 1


def test_discard_forgets_a_warm_up_pass():
    grouped = norm()
    staged = StagedStatistics(grouped)
    grouped(images(8))
    staged.accumulate()
    staged.discard()
    assert not staged.sums.any()
    assert grouped.scratch is not None
    assert not grouped.scratch.any()


def test_detach_gives_the_update_back_to_the_forward():
    grouped = norm()
    theirs = twin(grouped)
    StagedStatistics(grouped).detach()
    assert torch.equal(grouped(images(8)), theirs(images(8)))
    assert_same_state(theirs, grouped)


def test_frozen_norms_take_no_part():
    model = build_model({"name": "cifar_resnet20", "classes": 10, "freeze": ["stem"]})
    staged = StagedStatistics(model)
    model.train()
    model(images(4, pixels=8, dtype=torch.float32))
    staged.accumulate()
    staged.commit(1)
    assert len(staged.norms) == 18
    assert not model.bn1.training
    assert model.bn1.num_batches_tracked == 0
    assert model.layer1[0].bn1.num_batches_tracked == 1


def test_a_model_without_norms_or_with_all_frozen_commits_nothing():
    linear = nn.Linear(2, 2)
    StagedStatistics(linear).commit(1, ok=torch.tensor(True))
    model = build_model({"name": "cifar_resnet20", "classes": 10})
    freeze(model, ["stem", "block:0-8"])
    staged = StagedStatistics(model)
    staged.accumulate()
    staged.commit(1)
    assert not staged.norms


def test_norms_may_differ_in_momentum():
    ours = nn.ModuleList([norm(momentum=0.1), norm(chans=5, seed=1, momentum=0.3)])
    theirs = [twin(one) for one in ours]
    staged = StagedStatistics(ours)
    inputs = [images(4), images(4, chans=5)]
    for one, other, x in zip(ours, theirs, inputs, strict=True):
        torch.testing.assert_close(one(x), other(x))
    staged.accumulate()
    staged.commit(1)
    for one, other in zip(ours, theirs, strict=True):
        assert_same_state(other, one, rtol=1e-12)


def test_a_cumulative_average_is_refused():
    with pytest.raises(ValueError, match="need a momentum"):
        StagedStatistics(nn.Sequential(norm(momentum=0.1), norm(momentum=None)))
