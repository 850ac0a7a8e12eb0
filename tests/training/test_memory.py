"""Memory worked out on the meta device against what a real forward pass and a real optimizer hold."""

import resource

import pytest
import torch
from torch import nn

from restrain.insight.cost import saved_bytes
from restrain.models import build_model, named_joins, residual_blocks, set_factors, set_group
from restrain.optim.optimizers import build_optimizer
from restrain.parallel import blocks
from restrain.recipe import load
from restrain.training.inspection import model_without_memory
from restrain.training.memory import memory_of, optimizer_slots

SECTION = {"name": "cifar_resnet20", "classes": 10, "drop_path": {"rate": 0.2}}


def prepared(device: str, remat: bool = False) -> nn.Module:
    with torch.device(device):
        model = build_model(SECTION).train()
    set_group(model, 8)
    set_factors(model, torch.ones(len(named_joins(model)), 16, device=device))
    if remat:
        blocks.apply_remat(model)
    return model


def measured(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes of the storages that a real forward pass has saved, by their addresses."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), images)}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            held[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(images)
    total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    del out
    return total


def test_activations_are_those_of_a_real_forward() -> None:
    real = measured(prepared("cpu"), torch.rand(16, 3, 32, 32))
    counted = saved_bytes(prepared("meta"), torch.empty(16, 3, 32, 32, device="meta"))
    assert real > 10_000_000
    assert counted == pytest.approx(real, rel=0.02)


def test_activations_grow_with_rows_and_shrink_with_remat() -> None:
    images = torch.empty(16, 3, 32, 32, device="meta")
    whole, cut = saved_bytes(prepared("meta"), images), prepared("meta", remat=True)
    inputs: list[int] = []
    for _, block in residual_blocks(cut):
        block.register_forward_pre_hook(lambda _, given: inputs.append(given[0].untyped_storage().nbytes()))
    recomputed = saved_bytes(cut, images)
    assert sum(inputs[:9]) < recomputed < whole / 2
    assert all(block.remat for _, block in residual_blocks(cut))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "muon"])
def test_the_optimizers_state(name: str) -> None:
    section = load("digits_resnet20", [f"optimizer.name={name}", "optimizer.lr=0.1"]).recipe.optimizer
    model = build_model({"name": "cifar_resnet20", "classes": 10})
    real = build_optimizer(section, model, batch_global=64)
    held = sum(t.numel() * t.element_size() for s in real.state.values() for t in s.values() if torch.is_tensor(t))
    with torch.device("meta"):
        hollow = build_model({"name": "cifar_resnet20", "classes": 10})
    found = optimizer_slots(section, hollow).values()
    assert sum(slots.cut + slots.loose for slots in found) == held


def test_the_optimizer_of_the_largest_models_allocates_nothing() -> None:
    """One matrix of GPT-3 and its two moments would be 5 GB: as real tensors they would show in the peak."""
    with torch.device("meta"):
        model = build_model({"name": "gpt3_175b", "classes": 50257})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slots = optimizer_slots(load("gpt3_175b").recipe.optimizer, model).values()
    found = sum(one.cut + one.loose for one in slots)
    assert found == pytest.approx(2 * 4 * 174_604_259_328, rel=1e-6)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_recipes_memory() -> None:
    recipe = load("digits_resnet20", ["ema.decay=0.99", "model.freeze=[stem]"]).recipe
    model = model_without_memory(recipe)
    memory = memory_of(recipe, model, 8, 64, "fp32")
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert memory.share.weights == memory.share.average == weights
    assert 0 < memory.share.gradients < memory.share.weights
    assert memory_of(recipe, model, 8, 32, "fp32").activations == pytest.approx(memory.activations / 2, rel=0.05)
    casts = sum(2 * p.numel() for p in model.parameters() if p.ndim > 1)
    half = memory_of(recipe, model, 8, 64, "bf16").activations - casts
    assert half == pytest.approx(memory.activations / 2, rel=0.05)


@pytest.mark.parametrize(("name", "side"), [("resnet18", 64), ("timm/vit_tiny_patch16_224", 224)])
@pytest.mark.parametrize(("number_format", "within"), [("fp32", 0.02), ("bf16", 0.15)])
def test_a_networks_activations(name: str, side: int, number_format: str, within: float) -> None:
    """Under autocast the estimate is one: some operations stay in fp32."""
    overrides = ["batch.global=4", "batch.group=4", "model.zero_init=auto", f"model.name={name}"]
    recipe = load("imagenet_resnet50", [*overrides, f"resolution.train={side}", f"resolution.eval={side}"]).recipe
    model = build_model(recipe.model.model_dump(), 0, (side,)).train()
    set_group(model, 4)
    images = torch.rand(4, 3, side, side)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=number_format == "bf16"):
        real = measured(model, images)
    element = 4 if number_format == "fp32" else 2
    counted = memory_of(recipe, model, side, 4, number_format).activations - images.numel() * (1 + element)
    assert counted == pytest.approx(real, rel=within)
