"""What a process of a layout needs, before anything of it is built."""

from __future__ import annotations

import torch

from restrain.models import residual_blocks
from restrain.parallel.layout import SHARDED, ZERO, Layout
from restrain.parallel.partition import elements, partition_of
from restrain.recipe import Recipe
from restrain.training import inspection
from restrain.training.memory import held_by, memory_of


def needed(recipe: Recipe, layout: Layout, micro: int, number_format: str) -> int:
    """Bytes that the process with most of a layout takes at a step's peak: what it holds, the largest block that it
    gathers, and the estimate of the activations, which tensor parallelism is not taken to lessen."""
    model = inspection.model_without_memory(recipe)
    memory = memory_of(recipe, model, None, micro, number_format)
    if layout.strategy in ZERO:
        share, stage = 1 / layout.world, int(layout.strategy[-1])
        weights = memory.weights * (share if stage == 3 else 1) + memory.weights * share
        gradients = memory.gradients * (1 if stage == 1 else share)
        held = weights + gradients + (memory.optimizer + memory.ema) * share
    else:
        parameters = dict(model.named_parameters())
        whole = sum(p.numel() for p in parameters.values())
        share = elements(partition_of(model, layout, 0), parameters, 0) / whole
        held = (memory.weights + memory.gradients + memory.optimizer + memory.ema) * share
    gathered = 0
    if layout.strategy in (*SHARDED, "zero3"):
        blocks = [sum(p.numel() * p.element_size() for p in block.parameters()) for _, block in residual_blocks(model)]
        gathered = 2 * max(blocks, default=memory.weights) // layout.tensor  # its weights, and their gradients
    return round(held) + gathered + memory.activations


def room(device: torch.device, processes: int) -> int:
    """Bytes that one of so many processes on this machine has to itself: a GPU, or its part of the host's memory."""
    return held_by(device) if device.type == "cuda" else held_by(device) // processes
