"""Recomputation and compilation of blocks change neither gradients, nor staged statistics, nor draws, nor names."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from restrain.models import StagedStatistics, build_model, named_joins, residual_blocks, set_factors, set_group
from restrain.parallel.blocks import apply_compile, apply_remat

# torch hides this warning of its own tracer with a filter that pytest's "error" overrides.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

ROWS, GROUP = 8, 4
PASSES = [pytest.param(remat, compiled) for remat in (False, True) for compiled in (False, True) if remat or compiled]


def made() -> nn.Module:
    model = build_model({"name": "cifar_resnet20", "classes": 10, "drop_path": {"rate": 0.5}}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # fresh weights end each branch in a zero
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(parameter.numel()))
    set_group(model, GROUP)
    return model.to(memory_format=torch.channels_last).train()


def step(model: nn.Module, staged: StagedStatistics, micro: int) -> list[Tensor]:
    """Outputs, gradients and sums of one step of two micro-batches or more, with rows dropped."""
    x = torch.randn(2 * ROWS, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    factors = (torch.arange(9 * 2 * ROWS).view(9, -1) % 3 > 0) * 1.5
    outputs = []
    for part, keep in zip(x.split(micro), factors.split(micro, dim=1), strict=True):
        set_factors(model, keep)
        outputs.append(model(part.contiguous(memory_format=torch.channels_last)))
        outputs[-1].square().sum().backward()
        staged.accumulate()
    sums = staged.sums.clone()
    staged.commit(2 * ROWS // GROUP)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [torch.cat(outputs).detach(), *gradients, sums, *(buffer.clone() for _, buffer in model.named_buffers())]


def check(remat: bool, compiled: bool, backend: str, micro: int, tolerance: float) -> None:
    model = made()
    changed = copy.deepcopy(model)
    names = list(changed.state_dict())
    if remat:
        apply_remat(changed)
    if compiled:
        torch.compiler.reset()
        apply_compile(changed, backend)
    assert list(changed.state_dict()) == names
    assert [name for name, _ in residual_blocks(changed)] == [name for name, _ in residual_blocks(model)]
    expected = step(model, StagedStatistics(model), micro)
    found = step(changed, StagedStatistics(changed), micro)
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * a.abs().max().item())


@pytest.mark.parametrize("micro", [GROUP, ROWS])
@pytest.mark.parametrize(("remat", "compiled"), PASSES)
def test_nothing_but_the_work_changes(remat, compiled, micro):
    """aot_eager runs what compilation does to the graph, without the minute of C++ compilation."""
    check(remat, compiled, "aot_eager", micro, tolerance=1e-12 if compiled else 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("micro", [GROUP, ROWS])
@pytest.mark.parametrize("remat", [False, True])
def test_the_real_compiler_changes_float_order_alone(remat, micro):
    check(remat, True, "inductor", micro, tolerance=1e-11)


def test_blocks_of_one_kind_share_their_compilation():
    model = made()
    apply_compile(model, "aot_eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    step(model, StagedStatistics(model), GROUP)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 5  # first and later blocks of each stage
    assert not torch._dynamo.utils.counters["graph_break"]


def test_recomputation_runs_the_blocks_forward_twice():
    def flops(remat: bool) -> int:
        model = made()
        if remat:
            apply_remat(model)
        with FlopCounterMode(display=False) as counter:
            step(model, StagedStatistics(model), GROUP)
        return counter.get_total_flops()

    model = made()
    with FlopCounterMode(display=False) as counter:
        set_factors(model, torch.ones(len(named_joins(model)), 2 * ROWS))
        model(torch.randn(2 * ROWS, 3, 8, 8, dtype=torch.float64))
    forward = counter.get_total_flops()
    outside = 2 * 2 * ROWS * (3 * 16 * 9 * 64 + 64 * 10)  # stem and head are not recomputed
    assert flops(True) - flops(False) == forward - outside


def test_a_frozen_block_and_evaluation_recompute_nothing():
    model = made()
    apply_remat(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert counter.get_total_flops() > 0


def test_every_kind_of_block_is_compiled_however_many(monkeypatch):
    """The layers of a DenseNet widen, so each is a kind of its own."""
    monkeypatch.setattr("restrain.parallel.blocks.KINDS", 8)
    model = build_model({"name": "cifar_densenet40_k12", "classes": 10}).eval()
    apply_compile(model, "eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        model(torch.randn(2, 3, 8, 8))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 36
