"""Recomputation of blocks, of stretches of blocks, and under a budget: what it keeps, computes again and leaves."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from restrain.errors import UserError
from restrain.insight.cost import block_bytes, saved_bytes, weightless
from restrain.models import StagedStatistics, build_model, residual_blocks, set_group
from restrain.parallel.blocks import apply_remat, segment_size
from restrain.recipe import load
from restrain.training.memory import memory_of, recomputed
from tests.parallel.parity import COMMON, LAYOUTS, MODELS, Bench, compared

MODES = ["block", "every=2", "every=4", "sqrt"]
GPT = {"name": "gpt", "classes": 11, "shape": {"depth": 9, "width": 32, "heads": 4, "context": 8}}


def resnet() -> tuple[nn.Module, torch.Tensor]:
    model = build_model({"name": "cifar_resnet56", "classes": 10, "zero_init": False}).double()
    set_group(model, 4)
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model.to(memory_format=torch.channels_last).train(), x.contiguous(memory_format=torch.channels_last)


def gpt() -> tuple[nn.Module, torch.Tensor]:
    return build_model(GPT).double().train(), torch.arange(32).view(4, 8) % 11


def step(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    staged = StagedStatistics(model)
    outputs = model(x)
    outputs.square().sum().backward()
    staged.accumulate()
    sums = staged.sums.clone()
    staged.commit(2)
    return [outputs.detach(), sums, *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("made", [resnet, gpt])
def test_gradients_and_statistics_are_the_same_bits(made, mode: str) -> None:
    model, x = made()
    changed = copy.deepcopy(model)
    apply_remat(changed, mode)
    assert list(changed.state_dict()) == list(model.state_dict())
    for a, b in zip(step(model, x), step(changed, x), strict=True):
        assert torch.equal(a, b)


def flops(model: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x).square().sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("made", [resnet, gpt])
def test_what_is_computed_again_is_the_trunk_once(made, mode: str) -> None:
    model, x = made()
    trunk = 0
    for _, block in residual_blocks(model):
        seen = []
        handle = block.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs))
        with torch.no_grad():
            model(x)
        handle.remove()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            block(*seen[0])
        trunk += counter.get_total_flops()
    plain = flops(copy.deepcopy(model), x)
    apply_remat(model, mode)
    # Recomputation stops at the last tensor that is needed: a transformer's stretch ends in a product, which is not.
    stretches = len({block.segment for _, block in residual_blocks(model)}) if mode != "block" else 9
    last = 0 if made is resnet else stretches * 2 * x.numel() * 128 * 32
    assert flops(model, x) == plain + trunk - last


def kept(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes that are really held between the two passes: each storage that autograd or a checkpoint saves, once."""
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(x)
    total = sum(held.values())
    del outputs
    return total


@pytest.mark.parametrize("made", [resnet, gpt])
def test_the_prediction_is_what_is_kept(made) -> None:
    model, x = made()
    assert abs(saved_bytes(weightless(model).train(), x.to("meta")) / kept(model, x) - 1) < 0.1
    whole = saved_bytes(weightless(model).train(), x.to("meta"))
    amounts = {}
    for mode in MODES:
        twin = weightless(model).train()
        apply_remat(twin, mode)
        amounts[mode] = saved_bytes(twin, x.to("meta"))
    assert amounts["sqrt"] < whole
    assert amounts["block"] < whole
    depth = len(residual_blocks(model))
    assert segment_size("sqrt", depth) == round(depth**0.5)


def test_the_fewest_blocks_for_a_budget() -> None:
    recipe = load("digits_resnet56", ["precision=fp32"]).recipe
    with torch.device("meta"):
        model = build_model(recipe.model.model_dump())
    whole = memory_of(recipe, model, None, 64, "fp32").total
    seen = []
    for share in (1.01, 0.9, 0.75, 0.65):
        mib = share * whole / (1 << 20)
        wanted = load("digits_resnet56", ["precision=fp32", f"parallel.remat=budget={mib:.2f}MiB"]).recipe
        chosen = recomputed(wanted, model, None, 64, "fp32")
        needed = memory_of(wanted, model, None, 64, "fp32").total
        assert needed <= mib * (1 << 20)
        seen.append(len(chosen))
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert 0 < seen[1] < seen[3]
    with pytest.raises(UserError, match=r"budget=1MiB is not enough: with every block recomputed .* about .* MB"):
        recomputed(load("digits_resnet56", ["parallel.remat=budget=1MiB"]).recipe, model, None, 64, "fp32")
    amounts = block_bytes(weightless(model).train(), torch.empty(4, 1, 8, 8, device="meta"))
    assert list(amounts) == [name for name, _ in residual_blocks(model)]


@pytest.mark.parametrize("word", ["every=0", "budget=12", "every", "blocks", "budget=12GB"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"parallel\.remat.*none, block, sqrt, every=K"):
        load("digits_resnet20", [f"parallel.remat={word}"])


def test_networks_that_do_not_run_in_a_row() -> None:
    model = build_model({"name": "densenet121", "classes": 10, "join": {"name": "concat"}})
    with pytest.raises(UserError, match=r"remat=sqrt recomputes stretches of blocks, and DenseNet"):
        apply_remat(model, "sqrt")


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_stretches_on_two_ranks(tmp_path: Path, layout: str) -> None:
    bench = Bench(tmp_path)
    words = [*MODELS["resnet"], *COMMON, "batch.global=48", "batch.group=4"]
    alone = bench.run("alone", words, 1)
    run = bench.run("stretches", [*words, *LAYOUTS[layout][1], "parallel.remat=every=4", "batch.micro=8"], 2)
    assert max(compared(alone, run).values()) <= 1e-10
