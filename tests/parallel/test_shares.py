"""Bytes that a rank of each layout holds, counted from shapes: against real engines, in budgets, in what check prints,
and against the memory of the host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from restrain.cli.main import run
from restrain.errors import UserError, WorldError
from restrain.insight.units import size
from restrain.models import residual_blocks
from restrain.optim.optimizers import build_optimizer
from restrain.parallel.layout import Layout, layout_of
from restrain.parallel.shares import Share
from restrain.parallel.world import World
from restrain.recipe import Recipe, load
from restrain.training import inspection, memory
from restrain.training.network import build_engine

CPU = torch.device("cpu")
GPT = (
    "model.name=gpt",
    "model.classes=101",  # divides by neither 2 nor 4
    "model.shape={depth: 6, width: 36, heads: 2, context: 16}",
    "data.context=16",
    "precision=fp32",
    "batch.global=8",
    "batch.group=1",
    "batch.micro=1",
)
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "single": (1, ()),
    "ddp": (4, ("strategy=ddp",)),
    "fsdp": (4, ("strategy=fsdp",)),
    "hsdp": (4, ("strategy=hsdp", "shard=2")),
    "tensor": (2, ("tensor=2",)),
    "tensor x fsdp": (4, ("tensor=2", "strategy=fsdp")),
    "zero1": (4, ("strategy=zero1",)),
    "zero2": (4, ("strategy=zero2",)),
    "zero3": (4, ("strategy=zero3",)),
}


def of(name: str, *words: str) -> tuple[Recipe, Layout]:
    ranks, placed = LAYOUTS[name]
    found = load("gpt2_124m", [*GPT, f"parallel.devices={ranks}", *(f"parallel.{word}" for word in placed), *words])
    return found.recipe, layout_of(found.recipe.parallel, World(size=ranks, local_size=ranks))


def share(name: str, *words: str, rank: int = 0, micro: int | None = None) -> Share:
    recipe, layout = of(name, *words)
    return memory.held_of(recipe, inspection.model_without_memory(recipe), layout, micro, rank)


@contextmanager
def pretended(world: int, rank: int) -> Iterator[None]:
    """A process group of which the others are not there: what they would send is made up."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("name", ["fsdp", "hsdp", "tensor x fsdp"])
def test_a_rank_holds_what_is_counted(name: str, rank: int) -> None:
    recipe, layout = of(name)
    with pretended(layout.world, rank):
        engine = build_engine(recipe, CPU, None, layout, rank, 1)
        optimizer = build_optimizer(recipe.optimizer, engine.grouped(), batch_global=8, leaf=engine.optimized)
    leaves = [leaf for _, leaf in engine.leaves()]
    state = [t for slots in optimizer.state.values() for t in slots.values() if isinstance(t, torch.Tensor)]
    found = share(name, rank=rank)
    assert found.parameters == sum(leaf.numel() for leaf in leaves)
    assert found.weights == found.gradients == sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    assert found.optimizer == sum(t.numel() * t.element_size() for t in state)


def test_what_each_layout_cuts() -> None:
    """In multiples of the weights: two moments of AdamW, and ZeRO's copy of what it updates."""
    one = share("single")
    assert (one.master, one.average, one.gathered) == (0, 0, 0)
    for name, weights, master, gradients, optimizer in [
        ("single", 1, 0, 1, 2),
        ("ddp", 1, 0, 1, 2),
        ("fsdp", 1 / 4, 0, 1 / 4, 2 / 4),
        ("hsdp", 1 / 2, 0, 1 / 2, 2 / 2),
        ("zero1", 1, 1 / 4, 1 / 4, 2 / 4),
        ("zero2", 1, 1 / 4, 1 / 4, 2 / 4),
        ("zero3", 1 / 4, 1 / 4, 1 / 4, 2 / 4),
    ]:
        found = share(name)
        parts = [part / one.weights for part in (found.weights, found.master, found.gradients, found.optimizer)]
        assert parts == pytest.approx([weights, master, gradients, optimizer], rel=0.02), name
        assert found.total == sum((found.weights, found.master, found.gradients, found.optimizer, found.buffers))


def test_what_deepspeed_keeps_besides() -> None:
    """Stage 3 a bucket of a block; stages 1 and 2 the whole gradient of what ends in another rank's part."""
    recipe, _ = of("zero1")
    model = inspection.model_without_memory(recipe)
    block = sum(p.numel() for p in residual_blocks(model)[0][1].parameters())
    assert share("zero3").buffers == 4 * block
    sizes = [p.numel() for p in model.parameters()]
    quarter = -(-sum(sizes) // 4)
    for rank in range(4):
        touched, at = 0, 0
        for elements in sizes:
            touched += elements if at < (rank + 1) * quarter and at + elements > rank * quarter else 0
            at += elements
        found = share("zero2", rank=rank)
        assert found.gradients + found.buffers == pytest.approx(4 * touched, abs=8)


def test_a_moving_average_is_cut_like_the_weights() -> None:
    for name in ("fsdp", "zero1"):
        found = share(name, "ema.decay=0.9")
        assert found.average == pytest.approx(share("single").weights / 4, rel=0.02)
        assert found.total == share(name).total + found.average


@pytest.mark.parametrize("name", ["fsdp", "zero1", "zero2", "zero3"])
def test_gradients_are_whole_until_the_last_micro_batch(name: str) -> None:
    """With batch.global=8 on 4 ranks, two micro-batches of one row; one of two rows."""
    whole = share("single").gradients
    assert share(name, micro=1).gradients == whole
    assert share(name, micro=2).gradients == pytest.approx(whole / 4, rel=0.02)


def test_the_largest_part_that_is_gathered() -> None:
    """The embedding is larger than a block here; FSDP gathers all that is outside of blocks at once."""
    recipe, _ = of("fsdp")
    model = inspection.model_without_memory(recipe)
    inside = sum(p.numel() for _, block in residual_blocks(model) for p in block.parameters())
    block = inside // 6
    rest = sum(p.numel() for p in model.parameters()) - inside
    assert share("fsdp").gathered == share("hsdp").gathered == 4 * max(block, rest)
    small = share("zero3", "model.shape={depth: 6, width: 36, heads: 2, context: 512}", "data.context=512")
    assert small.gathered == 4 * max(block, 512 * 36)
    assert share("zero1").gathered == share("tensor").gathered == 0


# ------------------------------------------------------------------------------------------------------------- budgets


def chosen(model: nn.Module) -> list[str]:
    return [name for name, block in residual_blocks(model) if block.remat]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "single"])
def test_a_budget_is_the_same_for_check_and_training(name: str) -> None:
    """It is what a rank holds that is taken off a budget: of the whole, nothing would be left of these."""
    recipe, layout = of(name)
    model = inspection.model_without_memory(recipe)
    plain = memory.memory_of(recipe, model, None, 1, "fp32", layout)
    assert plain.share == memory.held_of(recipe, model, layout, 1)
    budget = plain.share.total + 0.7 * plain.activations
    recipe = of(name, f"parallel.remat=budget={budget / 2**20:.4f}MiB")[0]
    counted = memory.memory_of(recipe, model, None, 1, "fp32", layout)
    assert counted.total <= budget
    trained = inspection.model_without_memory(recipe)
    assert memory.lay_remat(recipe, trained, 1, "fp32", layout) == counted.recomputed
    assert 0 < len(chosen(trained)) < 6
    assert counted.recomputed.startswith(f"{len(chosen(trained))} of 6 blocks")


def test_a_budget_that_only_a_share_keeps_within() -> None:
    recipe, layout = of("zero2")
    model = inspection.model_without_memory(recipe)
    wanted = memory.memory_of(recipe, model, None, 2, "fp32", layout).total + 2**12
    recipe = of("zero2", f"parallel.remat=budget={wanted / 2**20:.4f}MiB")[0]
    assert memory.lay_remat(recipe, model, 2, "fp32", layout).startswith("0 of 6")
    with pytest.raises(UserError, match="is too small: with every block recomputed a process needs"):
        memory.lay_remat(recipe, model, 2, "fp32", Layout("ddp", 4))


def test_a_budget_is_of_the_device() -> None:
    """What is offloaded takes nothing of it."""
    for name in ("zero1", "zero3"):
        recipe, layout = of(name, "parallel.offload=cpu")
        model = inspection.model_without_memory(recipe)
        counted = memory.memory_of(recipe, model, None, 2, "fp32", layout)
        kept = counted.share.weights
        budget = f"parallel.remat=budget={(counted.activations + kept + 2**12) / 2**20:.4f}MiB"
        recipe = of(name, "parallel.offload=cpu", budget)[0]
        assert memory.lay_remat(recipe, model, 2, "fp32", layout).startswith("0 of 6")
        with pytest.raises(UserError, match="is too small"):
            memory.lay_remat(of(name, budget)[0], model, 2, "fp32", Layout("ddp", 4))


# --------------------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize("name", LAYOUTS)
def test_check_prints_what_is_counted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    ranks, placed = LAYOUTS[name]
    words = [*GPT, f"parallel.devices={ranks}", *(f"parallel.{word}" for word in placed), "parallel.accelerator=cpu"]
    assert run(["check", "gpt2_124m", *words, "--no-run"]) == 0
    said = capsys.readouterr().out
    found = share(name, micro=1)
    assert f"weights and buffers {size(found.weights)}" in said
    assert f"gradients {size(found.gradients)}" in said
    assert f"optimizer {size(found.optimizer)}" in said
    assert ("DeepSpeed's buffers" in said) == (found.buffers > 0)
    assert ("the copy that is updated" in said) == name.startswith("zero")
    if name == "single":
        assert "between backward pass and update" not in said
        return
    assert f"{size(found.total)} between backward pass and update" in said
    held = re.search(r"a process \w+ ([\d,]+) of ([\d,]+) parameters", said)
    assert held is not None
    assert int(held[1].replace(",", "")) == found.parameters
    assert (f"gathers at most {size(found.gathered)}" in said) == (found.gathered > 0)


# ------------------------------------------------------------------------------------------------- the host's memory


def test_what_is_offloaded_must_fit_the_host() -> None:
    _, layout = of("zero3")
    found = share("zero3")
    each = found.hosted(layout)
    assert each == found.total - found.weights - found.buffers
    assert memory.check_offload(found, layout, 4, 4 * each) == 4 * each
    with pytest.raises(WorldError) as caught:
        memory.check_offload(found, layout, 4, 4 * each - 1)
    for part in (size(4 * each), size(each), "4 process(es)", size(4 * each - 1), "parallel.offload=none"):
        assert part in str(caught.value)


def test_stages_1_and_2_have_what_is_updated_twice_on_the_host() -> None:
    _, layout = of("zero2")
    found = share("zero2")
    assert found.hosted(layout) == 2 * found.master + found.gradients + found.optimizer


def test_free_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"MEMINFO": "MemTotal: 9 kB\nMemAvailable: 4000 kB\n", "CONTAINER": "3000000", "USED": "1000000"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.free_on_host() == 2_000_000
    (tmp_path / "CONTAINER").write_text("max\n")
    assert memory.free_on_host() == 4_096_000


def test_check_tells_of_the_host_and_refuses_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, layout = of("zero3", "parallel.offload=cpu")
    assert memory.offloads(recipe, layout)
    assert not memory.offloads(recipe, Layout("fsdp", 4))
    counted = memory.memory_of(recipe, inspection.model_without_memory(recipe), None, 1, "fp32", layout)
    monkeypatch.setattr(inspection, "free_on_host", lambda: 1000)
    world = inspection.world_of(recipe)
    (line,) = inspection.offload_lines(counted, layout, world, refuse=False)
    assert line.startswith(f"of a node's memory they keep {size(4 * counted.share.hosted(layout))} (parallel.offload)")
    with pytest.raises(WorldError, match=r"parallel\.offload=cpu needs"):
        inspection.offload_lines(counted, layout, world, refuse=True)
