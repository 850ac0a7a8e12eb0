"""One micro-batch through everything that a step needs, before a run begins."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from restrain.errors import WorldError
from restrain.parallel import precision
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.training import build, opening, placement
from restrain.training.dropping import Dropping
from restrain.training.inputs import image_sides
from restrain.training.memory import Memory, held_by, held_of

ROWS_ON_A_CPU = 8  # of the batches of large networks a CPU computes a few images a second


class _Unknown:
    """A set that is not there: its vocabulary is what the model has."""

    def __init__(self, recipe: Recipe):
        self.vocabulary = recipe.model.classes - (recipe.objective.name == "masked_token")


@dataclass(frozen=True)
class DryRun:
    """What came of it. ``peak``: bytes of the GPU at most, None on a CPU."""

    rows: int
    real: bool
    device: torch.device
    number_format: str
    loss: float
    norm: float
    seconds: float
    peak: int | None


def held_and_needed(recipe: Recipe, model: nn.Module, memory: Memory) -> tuple[int, int]:
    """Bytes of the device that is there, and those that a dry run takes: all of the model whatever the layout, no
    optimizer, and on a CPU few rows."""
    device = placement.device_of(recipe, World())
    whole = held_of(recipe, model)
    share = 1.0 if device.type == "cuda" else min(memory.micro, ROWS_ON_A_CPU) / memory.micro
    return held_by(device), int(whole.weights + whole.gradients + memory.activations * share)


def unopened(recipe: Recipe) -> Any:
    """What a task wants to know of data that are not there."""
    return SimpleNamespace(mean=recipe.data.mean, std=recipe.data.std, train=_Unknown(recipe))


def dry_run(recipe: Recipe, data: build.Data | None, micro: int) -> DryRun:
    """A forward and a backward pass on the device that is there, of fresh weights.

    On a GPU ``micro`` rows, on a CPU at most 8, which are one group. ``data``: None for made-up images.

    Raises:
        WorldError: the loss or the gradient is not finite, or memory does not suffice.
    """
    device = placement.device_of(recipe, World())
    rows = micro if device.type == "cuda" else min(micro, ROWS_ON_A_CPU)
    group = recipe.batch.group if rows % recipe.batch.group == 0 else rows
    # The real order, augmentation, mixing and loader, of a step that is this one micro-batch.
    small = opening.settle(recipe, {"batch.global_": rows, "batch.group": group, "batch.micro": rows})
    small = opening.settle(small, {"data.repeats": 1, "precision": precision.resolve(recipe.precision, device)})
    source = data or unopened(recipe)
    samples, labels, mix = _batch(small, data, device, rows)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    task = build.build_task(small, source, device).train()  # pyright: ignore[reportArgumentType]
    Dropping(task.model, "sample", recipe.seed).rest(rows)
    began = time.perf_counter()
    with precision.autocast(small.precision, device):
        example = task.example(samples, labels, mix, 0, 0)
        outputs = task.model(example.inputs)
    loss = task.rows(outputs, example.target).mean()
    loss.backward()
    norms = [p.grad.norm() for p in task.model.parameters() if p.grad is not None]
    found = DryRun(
        rows,
        data is not None,
        device,
        small.precision,
        float(loss.detach()),
        float(torch.stack(norms).norm()),
        time.perf_counter() - began,
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
    if not (math.isfinite(found.loss) and math.isfinite(found.norm)):
        look = "data.mean and data.std, at " if recipe.data.kind == "images" else ""
        raise WorldError(
            f"The dry run gave a loss of {found.loss} and a gradient of norm {found.norm}, which are not finite. Look "
            f"at {look}the weights it begins from, and try precision=fp32."
        )
    return found


def made_up(recipe: Recipe, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows without data, equal wherever they are made: images uint8 [B, C, H, W], channels-last, windows int64
    [B, T + 1] or sequences float32 [B, T, D], and their labels."""
    if recipe.data.kind == "tokens":
        places = torch.arange(rows * (recipe.data.context + 1), device=device).view(rows, -1)
        return places % recipe.model.classes, places[:, :0]
    if recipe.data.kind == "sequences":
        size = (rows, recipe.data.context, recipe.model.in_chans)
        return (_scrambled(math.prod(size)) / 256.0).view(size).to(device), torch.ones(rows, device=device)
    side = image_sides(recipe)[0]
    images = _scrambled(math.prod(size := (rows, recipe.model.in_chans, side, side))).to(torch.uint8).view(size)
    labels = torch.arange(rows) % recipe.model.classes
    return images.contiguous(memory_format=torch.channels_last).to(device), labels.to(device)


def _scrambled(count: int) -> torch.Tensor:
    """Numbers from 0 to 255 by Knuth's multiplicative hashing: no generator."""
    return torch.arange(count) * 2654435761 >> 13 & 255


def _batch(recipe: Recipe, data: build.Data | None, device: torch.device, rows: int) -> tuple:
    """(samples, labels, how they are mixed or None) on the device."""
    if data is None:
        return *made_up(recipe, rows, device), None
    where = placement.Placement(str(device), rows, 1, 1)
    loader = build.build_train_loader(recipe, data, build.build_plan(recipe, data, []), World(), where, 0, 1)
    try:
        micro = next(iter(loader)).micros[0]
        images = micro.images.clone(memory_format=torch.preserve_format).to(device)
        return images, micro.labels.clone().to(device), micro.mix
    finally:
        loader.close()
