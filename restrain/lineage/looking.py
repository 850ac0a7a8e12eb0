"""Looking at a network without training it: its fresh or trained weights, rows of its data, what flows through it.

Shapes: B rows, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restrain.data.digits import DigitsSource
from restrain.lineage.bench import Trained
from restrain.models import residual_blocks
from restrain.recipe import Recipe
from restrain.training import build
from restrain.training.loaded import load_weights


def fresh(recipe: Recipe) -> nn.Module:
    """The recipe's network with its initial weights, in training mode on the CPU, in fp32."""
    return build.build_model_on(recipe, torch.device("cpu"), recipe.seed).train()


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


def gradients_by_block(model: nn.Module, x_BCHW: Tensor, labels_B: Tensor) -> list[float]:
    """Norm of the gradient of the mean loss at the output of each block, in depth order."""
    norms = [0.0] * len(residual_blocks(model))

    def look(number: int, output: Tensor) -> None:
        output.register_hook(lambda gradient: norms.__setitem__(number, float(gradient.norm())))

    with watching(model, look):
        loss = F.cross_entropy(model(x_BCHW), labels_B)
    loss.backward()
    return norms
