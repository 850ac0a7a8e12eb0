"""What a process of a layout needs, before anything of it is built."""

from __future__ import annotations

import torch

from restrain.parallel.layout import Layout
from restrain.recipe import Recipe
from restrain.training import inspection
from restrain.training.memory import held_by, memory_of


def needed(recipe: Recipe, layout: Layout, micro: int, number_format: str) -> int:
    """Bytes that the process with most of a layout takes at a step's peak: what it holds, the largest part that it
    gathers with its gradients, and the estimate of the activations, which tensor parallelism is not taken to lessen."""
    memory = memory_of(recipe, inspection.model_without_memory(recipe), None, micro, number_format, layout)
    return memory.total + 2 * memory.share.gathered


def room(device: torch.device, processes: int) -> int:
    """Bytes that one of so many processes on this machine has to itself: a GPU, or its part of the host's memory."""
    return held_by(device) if device.type == "cuda" else held_by(device) // processes
