"""``parallel.strategy: auto``: which layout, and the sentence that says why."""

from typing import Any

import pytest
import torch

from restrain.errors import UserError
from restrain.models.build import build_model
from restrain.parallel.layout import Layout
from restrain.parallel.world import World
from restrain.recipe import load
from restrain.training import build, memory, network
from restrain.training.choosing import Need, choose

GB = 10**9


def chosen(held: float, size: int, local: int | None = None, **more: Any):
    """For a model of ``held`` GB with 2 GB gathered at a time, on ``size`` processes of 80 GB."""
    words = [f"parallel.{key}={value}" for key, value in more.items()]
    parallel = load("digits_resnet20", words).recipe.parallel
    return choose(parallel, World(size=size, local_size=local or size), Need(int(held * GB), 2 * GB, 80 * GB, "adamw"))


def test_a_replica_each_where_it_fits() -> None:
    choice = chosen(50, 8)
    assert choice.layout == Layout("ddp", 8)
    assert choice.reason == (
        "ddp: the model with gradients and adamw takes 50 GB a process of 80 GB, of which 70 % are for these and the "
        "rest is for activations; each holds all"
    )


def test_all_share_what_one_cannot_hold() -> None:
    choice = chosen(97, 8)
    assert choice.layout == Layout("fsdp", 8, 1, 8)
    assert choice.reason == (
        "fsdp: the model with gradients and adamw takes 97 GB a process of 80 GB, of which 70 % are for these and the "
        "rest is for activations; 8 processes share it, 12.1 GB each, and gather 2 GB at a time"
    )


def test_the_edge() -> None:
    assert chosen(56, 8).layout.strategy == "ddp"
    assert chosen(56.1, 8).layout.strategy == "fsdp"


def test_those_of_a_node_share_it_where_they_can() -> None:
    choice = chosen(97, 32, 8)
    assert choice.layout == Layout("hsdp", 32, 1, 8)
    assert "the 8 of a node, within which gathers stay, share it, 12.1 GB each" in choice.reason
    assert chosen(432, 32, 8).layout.strategy == "hsdp"  # 54 and 2 GB of 56
    assert chosen(433, 32, 8).layout == Layout("fsdp", 32, 1, 32)
    assert chosen(97, 4, 1).layout == Layout("fsdp", 4, 1, 4)  # nodes of one process share nothing


def test_a_tensor_group_holds_a_part_already() -> None:
    assert chosen(97, 4, tensor=2).layout == Layout("ddp", 4, 2)
    assert chosen(388, 32, 8, tensor=2).layout == Layout("hsdp", 32, 2, 4)
    choice = chosen(388, 8, tensor=8)  # 48.5 GB each, and no other processes
    assert choice.layout == Layout("ddp", 8, 8)
    assert "cut over tensor groups of 8" in choice.reason
    assert "no other process to share it" in chosen(900, 8, tensor=8).reason


def test_what_fits_nowhere_is_said() -> None:
    choice = chosen(2800, 8)
    assert choice.layout.strategy == "fsdp"
    assert choice.reason.endswith(
        "350 GB each, and gather 2 GB at a time, which is still more than 56 GB: take more processes, or "
        "parallel.tensor"
    )


def test_a_strategy_that_is_written_is_taken() -> None:
    choice = chosen(97, 8, strategy="ddp")
    assert (choice.layout, choice.reason) == (Layout("ddp", 8), "")
    assert chosen(97, 1).layout == Layout()
    with pytest.raises(UserError, match=r"parallel\.shard=4 is the size .* parallel\.strategy is auto"):
        chosen(97, 32, 8, shard=4)


@pytest.mark.parametrize(("kept", "strategy"), [(1000, "ddp"), (3, "fsdp")])
def test_what_a_recipe_needs(kept: int, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums are those of the model itself: SGD with momentum keeps one number a parameter, the average another."""
    recipe = load("digits_resnet20", ["ema={decay: 0.9}"]).recipe
    with torch.device("meta"):
        model = build_model(recipe.model.model_dump())
    weights = sum(4 * p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    monkeypatch.setattr(memory, "held_by", lambda device: kept * weights)
    world = World(size=2, local_size=2)
    need = network.need_of(recipe, torch.device("cpu"), world)
    assert need is not None
    assert need.held == 4 * weights + 2 * buffers
    assert need.memory == kept * weights // 2  # both share the host's
    choice = choose(recipe.parallel, world, need)
    assert choice.layout.strategy == strategy
    assert "the model with gradients, sgd and its moving average takes" in choice.reason
    assert network.need_of(recipe, torch.device("cpu"), World()) is None


def test_what_is_gathered_at_a_time() -> None:
    """The embedding of a small GPT is larger than its blocks, and is gathered with the root."""
    recipe = build.with_classes(load("gpt2_124m", []).recipe, None)
    sizes = {}
    for classes in (256, 50257):
        with torch.device("meta"):
            model = build_model(recipe.model.model_dump() | {"classes": classes})
        sizes[classes] = memory.needed(recipe, model, 10**9).gathered
    block = sum(p.numel() for p in model.get_submodule("blocks.0").parameters())
    assert sizes[256] == 4 * block
    assert sizes[50257] > 4 * 50257 * 768
