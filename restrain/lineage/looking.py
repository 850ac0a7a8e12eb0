"""Looking at a network without training it: its fresh or trained weights, rows of its data, what flows through it.

Shapes: B rows, C channels, H and W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.data.digits import DigitsSource
from restrain.lineage.bench import Trained
from restrain.models import build_model, residual_blocks
from restrain.recipe import Recipe
from restrain.training import network
from restrain.training.dropping import Dropping
from restrain.training.loaded import load_weights


def without_weights(**section: Any) -> nn.Module:
    """The network of a recipe's ``model`` section, to be counted: on the meta device, which takes no memory."""
    with torch.device("meta"):
        return build_model(section)


def fresh(recipe: Recipe) -> nn.Module:
    """The recipe's network with its initial weights, in training mode on the CPU, in fp32."""
    return network.build_model_on(recipe, torch.device("cpu"), recipe.seed).train()


def of_run(run: Trained) -> nn.Module:
    """The network at the end of a run, in training mode."""
    return load_weights(run.checkpoints[-1]).model.requires_grad_(True).train()


def rows_of(recipe: Recipe, rows: int) -> tuple[Tensor, Tensor]:
    """The first held-out digits as the network sees them, float32 [B, 1, 8, 8], and their labels, int64 [B]."""
    images, labels, _ = DigitsSource("eval").rows(np.zeros(rows, np.int64), np.arange(rows))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (recipe.data.mean, recipe.data.std))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)


@contextmanager
def watching(model: nn.Module, look: Callable[[int, Tensor], Any]) -> Iterator[None]:
    """``look(block, output)`` after each residual block, counted from 0."""
    blocks = [block for _, block in residual_blocks(model)]
    handles = []
    for number, block in enumerate(blocks):
        hook: Any = lambda _module, _inputs, output, n=number: look(n, output)  # noqa: E731
        handles.append(block.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def seconds_side_by_side(models: Mapping[str, nn.Module], modes: Mapping[str, str], steps: int) -> dict[str, float]:
    """Mean processor time of a training step without its optimizer, of networks that take one in turn; ``modes``: how
    each drops its branches. All see the same 64 random images of 8 x 8 pixels, and other load falls on all alike."""
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x_BCHW, labels_B = images.contiguous(memory_format=torch.channels_last), torch.arange(64) % 10
    droppings = {name: Dropping(model, modes[name], seed=0) for name, model in models.items()}
    seconds = dict.fromkeys(models, 0.0)
    for step in range(steps + 1):
        for name, model in models.items():
            began = time.process_time()
            droppings[name].begin(step, 64)
            droppings[name].write(0, 64)
            F.cross_entropy(model(x_BCHW), labels_B).backward()
            model.zero_grad()
            if step > 0:  # the first one allocates
                seconds[name] += (time.process_time() - began) / steps
    return seconds
