"""How much memory a process of a run needs, worked out on the meta device."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from restrain.errors import WorldError
from restrain.insight.cost import saved_bytes
from restrain.insight.units import size
from restrain.models import residual_blocks
from restrain.optim.optimizers import build_optimizer
from restrain.parallel import blocks
from restrain.parallel.layout import Layout
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.training import remat
from restrain.training.choosing import Need

CONTAINER = Path("/sys/fs/cgroup/memory.max")  # bytes, or max; of the Linux control group that this process sees


@dataclass(frozen=True)
class Memory:
    """Bytes of one process with ``micro`` rows a forward pass; ``activations`` is an estimate (``saved_bytes``)."""

    micro: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    recomputed: str = ""  # what is, in words

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


def held_by(device: torch.device) -> int:
    """Bytes of memory that a device has; of the host what the machine, or this process's container, has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(CONTAINER.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return whole


def process_memory(device: torch.device, world: World) -> int:
    """Bytes that a process has: its GPU's, or its share of the host's."""
    return held_by(device) // (1 if device.type == "cuda" else world.local_size)


def needed(recipe: Recipe, model: nn.Module, memory: int) -> Need:
    """What of a model, which may be on the meta device, ``parallel.strategy: auto`` goes by."""
    average = recipe.ema is not None
    return Need(sum(held_of(recipe, model)), largest_unit(model)[1], memory, recipe.optimizer.name, average)


def largest_unit(model: nn.Module) -> tuple[str, int]:
    """What of a sharded model is gathered at a time, in words, and its bytes: a block, or what is outside of them."""
    blocks = [list(block.parameters()) for _, block in residual_blocks(model)]
    inside = {id(parameter) for block in blocks for parameter in block}
    rest = _bytes([parameter for parameter in model.parameters() if id(parameter) not in inside])
    largest = max(map(_bytes, blocks), default=0)
    return ("what is outside of the blocks", rest) if rest > largest else ("the largest block", largest)


def check_room(name: str, model: nn.Module, device: torch.device, gradients: bool) -> None:
    """Raises WorldError where ``model``, which may be on the meta device, does not fit ``device`` by its weights, and
    their gradients where those are wanted."""
    weights = _bytes([*model.parameters(), *model.buffers()])
    needed = weights + (_bytes([p for p in model.parameters() if p.requires_grad]) if gradients else 0)
    if needed > (held := held_by(device)):
        parts = "its weights and their gradients" if gradients else "its weights"
        raise WorldError(
            f"model.name={name} takes {size(needed)} for {parts} alone, and this machine has {size(held)} of memory"
            f"{' on its GPU' if device.type == 'cuda' else ''}. Use a machine that holds it, or a smaller model; "
            f"restrain check counts it without memory."
        )


def memory_of(recipe: Recipe, model: nn.Module, side: int | None, micro: int, number_format: str) -> Memory:
    """Memory for micro-batches of ``micro`` images of ``side`` pixels, or windows of tokens; ``model`` may be on the
    meta device.

    number_format: ``precision`` with auto resolved. Under bf16 and fp16 activations count two bytes an element, though
    autocast leaves a few operations in fp32.
    """
    held = held_of(recipe, model)
    twin, inputs = remat.twin_of(recipe, model, micro, number_format, side)
    told = remat.lay(recipe, [twin], twin, inputs, sum(held), number_format)
    kept = saved_bytes(twin, inputs) + remat.beside_blocks(twin, inputs, number_format)
    return Memory(micro, *held, kept, told)


def held_of(recipe: Recipe, model: nn.Module) -> tuple[int, int, int, int]:
    """Bytes of weights, gradients, optimizer and EMA."""
    weights = _bytes([*model.parameters(), *model.buffers()])
    return (
        weights,
        _bytes([parameter for parameter in model.parameters() if parameter.requires_grad]),
        optimizer_bytes(recipe.optimizer, model),
        weights if recipe.ema is not None else 0,
    )


def lay_remat(recipe: Recipe, model: nn.Module, micro: int | None, number_format: str, layout: Layout) -> str:
    """Let a model that is to be trained recompute what ``parallel.remat`` says (:func:`restrain.training.remat.lay`).

    ``micro``: None where nobody trains, so that there is nothing that must fit: a budget recomputes every block.
    """
    wanted = recipe.parallel.remat
    if wanted == "none":
        return remat.NOTHING
    if wanted == "block" or (micro is None and wanted.startswith("budget")):
        blocks.apply_remat(model)
        return "each block is recomputed"
    twin, inputs = remat.twin_of(recipe, model, micro or recipe.batch.group, number_format)
    held = sum(held_of(recipe, model)) // (layout.shard * layout.tensor) if wanted.startswith("budget") else 0
    return remat.lay(recipe, [model], twin, inputs, held, number_format)


def optimizer_bytes(section: Any, model: nn.Module) -> int:
    """Bytes of the state that an optimizer keeps for a model.

    How many slots a parameter has is the optimizer's own affair (Muon goes by its shape): it is made, and takes a step,
    for a twin of fake tensors, which have shapes and no memory: one matrix of GPT-3 would be 2 GB. An optimizer that
    looks at values (Muon) is made for tensors of zeros.
    """
    try:
        with FakeTensorMode():
            return _optimizer_bytes(section, model)
    except DataDependentOutputException:
        return _optimizer_bytes(section, model)


def _optimizer_bytes(section: Any, model: nn.Module) -> int:
    """All parameters of one shape are one in the twin, so that little is allocated or done."""
    by_kind: dict[Any, nn.Parameter] = {}
    parameters = list(model.parameters())
    kinds = [(p.shape, p.dtype, p.requires_grad) for p in parameters]
    for shape, dtype, trained in kinds:
        by_kind.setdefault((shape, dtype, trained), nn.Parameter(torch.zeros(shape, dtype=dtype), trained))
    memo: dict[int, Any] = {id(p): by_kind[kind] for p, kind in zip(parameters, kinds, strict=True)}
    memo |= {id(buffer): torch.zeros(0) for buffer in model.buffers()}
    optimizer = build_optimizer(section, copy.deepcopy(model, memo), batch_global=section.lr_per or 1)
    return sum(_bytes(_tensors(optimizer.state.get(by_kind[kind], {}))) for kind in kinds)


def _tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in state.values() if isinstance(value, torch.Tensor)]


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
