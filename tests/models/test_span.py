"""BatchNorm of groups that lie over several ranks against torch's BatchNorm of the whole group in one process.

The ranks are processes; each works out the whole group's reference itself and compares with its own part.
"""

import copy
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from restrain.models import StagedStatistics, set_group
from restrain.models.norm import GroupedBatchNorm1d, GroupedBatchNorm2d
from restrain.models.span import Span, combined, own_statistics
from restrain.parallel.distributed import span_of
from tests.worlds import CONTEXT


def on_ranks(work: Callable[[int, int], None], world: int, folder: Path) -> None:
    """Run ``work(rank, world)`` in ``world`` processes that share a gloo group; their tracebacks are the message."""
    ranks = [CONTEXT.Process(target=_rank, args=(work, rank, world, str(folder))) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    late = [process for process in ranks if process.exitcode is None]
    for process in late:
        process.kill()
    said = "\n".join(path.read_text() for path in sorted(folder.glob("said-*")))
    assert [process.exitcode for process in ranks] == [0] * world, said


def _rank(work: Callable[[int, int], None], rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        work(rank, world)
    except BaseException:
        Path(folder, f"said-{rank}").write_text(f"rank {rank}\n{traceback.format_exc()}")
        raise
    finally:
        dist.destroy_process_group()


def values(*shape: int, seed: int = 0, mean: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 + mean
    made = made.to(dtype)
    return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made


def a_norm(chans: int, ndim: int, dtype: torch.dtype = torch.float64, **options: bool) -> nn.Module:
    made = (GroupedBatchNorm2d if ndim == 4 else GroupedBatchNorm1d)(chans, dtype=dtype, **options)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.copy_(torch.linspace(0.5, 1.5, chans) + number)
    return made


def compare(
    rank: int, world: int, x: Tensor, tolerance: float, dtype: torch.dtype = torch.float64, **options: bool
) -> None:
    """Output, gradients and running statistics of this rank's rows, from all rows [world * b, C, ...]."""
    span = span_of(rank, world)
    ours = a_norm(x.shape[1], x.ndim, dtype, **options)
    whole = copy.deepcopy(ours).double()
    set_group(ours, x.shape[0], span)
    upstream = values(*x.shape, seed=1, mean=0.0)
    mine = slice(rank * x.shape[0] // world, (rank + 1) * x.shape[0] // world)
    own = x[mine].clone(memory_format=torch.preserve_format).requires_grad_()
    everything = x.double().requires_grad_()
    y, expected = ours(own), whole(everything)
    y.backward(upstream[mine].to(y.dtype))
    expected.backward(upstream)

    def close(found: Tensor, wanted: Tensor, what: str) -> None:
        error = (found.detach().double() - wanted.detach()).abs().max().item()
        assert error <= tolerance * max(1.0, wanted.abs().max().item()), (what, error)

    assert own.grad is not None
    assert everything.grad is not None
    close(y, expected[mine], "output")
    close(own.grad, everything.grad[mine], "gradient of the input")
    if x.ndim == 4:
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert own.grad.is_contiguous(memory_format=torch.channels_last)
    for (name, parameter), other in zip(ours.named_parameters(), whole.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        total = parameter.grad.double()
        dist.all_reduce(total)
        close(total, other.grad, name)
    for name, buffer in ours.named_buffers():
        close(buffer, whole.get_buffer(name), name)
        copies = [torch.empty_like(buffer) for _ in range(world)]
        dist.all_gather(copies, buffer)
        assert all(torch.equal(copies[0], other) for other in copies), name


def _as_one_process(rank: int, world: int) -> None:
    compare(rank, world, values(8, 5, 3, 3), 1e-12)
    compare(rank, world, values(world, 5, 2, 2), 1e-12)  # one row a rank
    compare(rank, world, values(world, 5), 1e-12)  # one value a channel on each rank
    compare(rank, world, values(8, 5, 7), 1e-12)
    compare(rank, world, values(8, 5, 3, 3), 1e-12, affine=False)
    compare(rank, world, values(8, 5, 3, 3, mean=1e4), 1e-9)
    compare(rank, world, values(8, 5, 3, 3, dtype=torch.float32), 2e-6, torch.float32)
    # E[x^2] - E[x]^2 would lose all digits of a variance of 4 beside a mean of 3,000.
    compare(rank, world, values(8, 5, 3, 3, mean=3e3, dtype=torch.float32), 1e-3, torch.float32)
    compare(rank, world, values(8, 5, 3, 3, dtype=torch.bfloat16), 2e-2, torch.float32)
    compare(rank, world, values(8, 5, 3, 3, dtype=torch.float16), 4e-3, torch.float32)


@pytest.mark.parametrize("world", [2, 4])
def test_a_group_over_ranks_is_normalised_as_in_one_process(world: int, tmp_path: Path) -> None:
    on_ranks(_as_one_process, world, tmp_path)


class Two(nn.Module):
    """Two norms, the first of which may be recomputed."""

    def __init__(self, remat: bool = False):
        super().__init__()
        self.first, self.second, self.remat = a_norm(3, 4), a_norm(3, 4), remat

    def forward(self, x: Tensor) -> Tensor:
        inside = lambda x: torch.tanh(self.first(x))  # noqa: E731
        x = checkpoint(inside, x, use_reentrant=False) if self.remat else inside(x)
        return self.second(x)


def _two_groups_over_four(rank: int, world: int) -> None:
    x, upstream = values(16, 3, 2, 2), values(16, 3, 2, 2, seed=1)
    alone = Two()
    set_group(alone, 8)
    expected = StagedStatistics(alone)
    for part in range(0, 16, 8):  # two micro-batches of a group each
        alone(x[part : part + 8]).backward(upstream[part : part + 8])
        expected.accumulate()
    for remat in (False, True):
        model = Two(remat)
        set_group(model, 8, span_of(rank, 2))
        staged = StagedStatistics(model)
        mine = slice(rank * 4, rank * 4 + 4)
        model(x[mine]).backward(upstream[mine])
        staged.accumulate()
        dist.all_reduce(staged.sums)
        torch.testing.assert_close(staged.sums, expected.sums, rtol=1e-12, atol=1e-12)
        for found, wanted in zip(model.parameters(), alone.parameters(), strict=True):
            assert found.grad is not None
            dist.all_reduce(found.grad)
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-12, atol=1e-12)


def test_staged_statistics_of_all_ranks_are_those_of_whole_groups_also_when_recomputed(tmp_path: Path) -> None:
    on_ranks(_two_groups_over_four, 4, tmp_path)


def test_combining_parts_is_exact_and_keeps_small_variances():
    x = values(12, 4, 3, 3, mean=1e6)
    found = combined(torch.stack([own_statistics(part) for part in x.split(3)]))
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(found, torch.stack([mean, variance]), rtol=1e-9, atol=0.0)


def test_what_a_span_refuses_and_that_copies_share_it(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        span = Span(dist.group.WORLD)  # pyright: ignore[reportArgumentType]
        span.size = 2  # as if there were another rank
        with pytest.raises(ValueError, match="group of 9 rows cannot be cut into 2 equal parts"):
            set_group(Two(), 9, span)
        model = Two()
        set_group(model, 8, span)
        with pytest.raises(ValueError, match=r"3 rows are not 1/2 of a BatchNorm group of 8"):
            model(values(3, 3, 2, 2))
        assert copy.deepcopy(model).first.span is span
        model.eval()(values(3, 3, 2, 2))  # evaluation asks no other rank
        set_group(model, 8)
        model.train()(values(8, 3, 2, 2))
    finally:
        dist.destroy_process_group()
