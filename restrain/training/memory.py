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
from restrain.optim.optimizers import build_optimizer
from restrain.parallel import blocks
from restrain.parallel.layout import ZERO, Layout
from restrain.parallel.shares import Share, Slots, share_of
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.training import remat
from restrain.training.choosing import Need

ALONE = Layout()
CONTAINER = Path("/sys/fs/cgroup/memory.max")  # bytes, or max; of the Linux control group that this process sees
USED = Path("/sys/fs/cgroup/memory.current")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Memory:
    """Bytes of one process with ``micro`` rows a forward pass; ``activations`` is an estimate (``saved_bytes``)."""

    micro: int
    share: Share
    activations: int
    recomputed: str = ""  # what is, in words

    @property
    def total(self) -> int:
        return self.share.total + self.activations


def held_by(device: torch.device) -> int:
    """Bytes of memory that a device has; of the host what the machine, or this process's container, has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(CONTAINER.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return whole


def free_on_host() -> int:
    """Bytes of the host's memory that processes can still have, within this process's container."""
    lines = MEMINFO.read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        return min(free, int(CONTAINER.read_text()) - int(USED.read_text()))
    except (OSError, ValueError):
        return free


def process_memory(device: torch.device, world: World) -> int:
    """Bytes that a process has: its GPU's, or its share of the host's."""
    return held_by(device) // (1 if device.type == "cuda" else world.local_size)


def needed(recipe: Recipe, model: nn.Module, memory: int) -> Need:
    """What of a model, which may be on the meta device, ``parallel.strategy: auto`` goes by."""
    gathered = held_of(recipe, model, Layout("fsdp", 2, 1, 2)).gathered  # of any number of processes
    return Need(held_of(recipe, model).total, gathered, memory, recipe.optimizer.name, recipe.ema is not None)


def offloads(recipe: Recipe, layout: Layout) -> bool:
    """Whether a run keeps what its processes hold, or a part of it, in the host's memory."""
    return recipe.parallel.offload == "cpu" and layout.strategy in ZERO


def check_offload(share: Share, layout: Layout, processes: int, free: int) -> int:
    """Bytes that the ``processes`` of a node keep in its memory. Raises WorldError where that is more than ``free``."""
    each = share.hosted(layout)
    if (needed := each * processes) > free:
        raise WorldError(
            f"parallel.offload=cpu needs {size(needed)} of this machine's memory, {size(each)} for each of "
            f"{processes} process(es) of {layout.strategy} on {layout.world}, and {size(free)} are free. Use more "
            f"nodes, a machine with more memory, or parallel.offload=none."
        )
    return needed


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


def memory_of(
    recipe: Recipe, model: nn.Module, side: int | None, micro: int, number_format: str, layout: Layout = ALONE
) -> Memory:
    """Memory for micro-batches of ``micro`` images of ``side`` pixels, or windows of tokens; ``model`` may be on the
    meta device, and is where ``layout`` cuts it.

    number_format: ``precision`` with auto resolved. Under bf16 and fp16 activations count two bytes an element, though
    autocast leaves a few operations in fp32. What tensor parallelism saves of activations is not taken off.
    """
    share = held_of(recipe, model, layout, micro)
    twin, inputs = remat.twin_of(recipe, model, micro, number_format, side)
    held = share.on_device(layout, offloads(recipe, layout))
    told = remat.lay(recipe, [twin], twin, inputs, held, number_format)
    kept = saved_bytes(twin, inputs) + remat.beside_blocks(twin, inputs, number_format)
    return Memory(micro, share, kept, told)


def held_of(recipe: Recipe, model: nn.Module, layout: Layout = ALONE, micro: int | None = None, rank: int = 0) -> Share:
    """What a rank holds beside activations; the first one has the most of what does not divide.

    ``micro``: rows of a forward pass; None: all of a rank's.
    """
    accumulates = micro is not None and micro * layout.data < recipe.batch.global_
    slots = optimizer_slots(recipe.optimizer, model)
    return share_of(model, layout, rank, slots, recipe.ema is not None, accumulates)


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
    held = 0
    if wanted.startswith("budget"):
        held = held_of(recipe, model, layout, micro).on_device(layout, offloads(recipe, layout))
    return remat.lay(recipe, [model], twin, inputs, held, number_format)


def optimizer_slots(section: Any, model: nn.Module) -> dict[str, Slots]:
    """Bytes of the state that an optimizer keeps for each parameter of a model, by its name.

    How many slots a parameter has is the optimizer's own affair (Muon goes by its shape): it is made, and takes a step,
    for a twin of fake tensors, which have shapes and no memory: one matrix of GPT-3 would be 2 GB. An optimizer that
    looks at values (Muon) is made for tensors of zeros.
    """
    try:
        with FakeTensorMode():
            return _optimizer_slots(section, model)
    except DataDependentOutputException:
        return _optimizer_slots(section, model)


def _optimizer_slots(section: Any, model: nn.Module) -> dict[str, Slots]:
    """All parameters of one shape are one in the twin, so that little is allocated or done."""
    by_kind: dict[Any, nn.Parameter] = {}
    parameters = dict(model.named_parameters())
    kinds = {name: (p.shape, p.dtype, p.requires_grad) for name, p in parameters.items()}
    for shape, dtype, trained in kinds.values():
        by_kind.setdefault((shape, dtype, trained), nn.Parameter(torch.zeros(shape, dtype=dtype), trained))
    memo: dict[int, Any] = {id(p): by_kind[kinds[name]] for name, p in parameters.items()}
    memo |= {id(buffer): torch.zeros(0) for buffer in model.buffers()}
    optimizer = build_optimizer(section, copy.deepcopy(model, memo), batch_global=section.lr_per or 1)
    found = {}
    for kind, parameter in by_kind.items():
        tensors = [value for value in optimizer.state.get(parameter, {}).values() if isinstance(value, torch.Tensor)]
        cut = [value for value in tensors if value.ndim]
        found[kind] = Slots(_bytes(cut), _bytes(tensors) - _bytes(cut))
    return {name: found[kind] for name, kind in kinds.items()}


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
