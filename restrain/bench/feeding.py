"""Whether a recipe's data keep up with its step, and what limits: storage, decoder, augmentations or model.

The loader is the run's own; the step is forward and backward of the recipe's network on images that are there already.
Everything happens on this machine as it is, so its other work counts too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from restrain.bench.rates import Rate, cpu_seconds
from restrain.data.augment import Pipeline
from restrain.data.laps import STAGES, Laps
from restrain.data.loader import TrainLoader
from restrain.data.reader import Source
from restrain.data.remote.urls import is_remote
from restrain.parallel import precision
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.training import build, opening, placement
from restrain.training.dropping import Dropping
from restrain.training.dry_run import ROWS_ON_A_CPU

SLOWER = 0.95  # below this share of the step's rate the loader is the limit
WARM = 2  # batches and steps before the clock starts
LIMITS = {
    "read": "the storage",
    "decode": "the decoder",
    "augment": "the augmentations",
    "collate": "the memory",
    "step": "the model",
}


@dataclass
class Stage:
    """Milliseconds an image in one thread: wall, and of them CPU."""

    wall_ms: float
    cpu_ms: float


@dataclass
class Feeding:
    """stages: of one thread. whole: the loader with ``threads`` threads. step: images a second of the training step
    alone; None where it was not asked for. limit: a stage, or ``step``."""

    stages: dict[str, Stage]
    whole: Rate
    threads: int
    copy_ms: float
    step: float | None
    images: int
    remote: bool = False  # the set lies behind a network
    limit: str = field(init=False)

    def __post_init__(self):
        slowest = max(self.stages, key=lambda name: self.stages[name].wall_ms)
        fed = self.step is not None and self.whole.images_per_s >= SLOWER * self.step
        self.limit = "step" if fed else slowest


def measure(
    source: Source, pipeline: Pipeline, loader: TrainLoader, seconds: float, device: torch.device, step: float | None
) -> Feeding:
    """Time the loader for some seconds. ``loader``: of that source and pipeline. step: images a second of the model."""
    loader.laps = Laps(every=1)
    batches = iter(loader)
    try:
        for _ in range(WARM):
            next(batches)
        before, cpu, began = loader.laps.sums(), cpu_seconds(), time.perf_counter()
        images, copied = 0, 0.0
        for batch in batches:
            images += sum(len(micro.labels) for micro in batch.micros)
            copied += _copied(batch.micros[0].images, device) * len(batch.micros)
            if time.perf_counter() - began >= seconds:
                break
        wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
        sums = loader.laps.sums().since(before)
    finally:
        loader.close()
    rows = max(1, sums.rows)
    stages = {name: Stage(sums.wall[name] / rows * 1e3, sums.cpu[name] / rows * 1e3) for name in STAGES}
    whole = Rate(images / wall, cpu / max(1, images) * 1e3)
    return Feeding(stages, whole, loader.threads, copied / max(1, images) * 1e3, step, images)


def of_recipe(recipe: Recipe, data: build.Data, seconds: float, with_step: bool = True) -> Feeding:
    """A recipe's loader and step on the device that is there. Raises what a run of the recipe would raise."""
    world = World()
    device = placement.device_of(recipe, world)
    build.use_decoder(data, recipe)
    where = placement.place(recipe, world, device, data.pixels)
    plan = build.build_plan(recipe, data, [])
    step = _step_rate(recipe, data, device, where, seconds) if with_step else None
    many = plan.steps_per_epoch * 1000  # far more than the time allows
    loader = build.build_train_loader(recipe, data, plan, world, where, 0, many)
    assert isinstance(data.train_pipeline, Pipeline)
    found = measure(data.train, data.train_pipeline, loader, seconds, device, step)
    found.remote = is_remote(getattr(recipe.data, "root", None))
    return found


def _step_rate(
    recipe: Recipe, data: build.Data, device: torch.device, where: placement.Placement, seconds: float
) -> float:
    """Images a second of forward and backward passes on a micro-batch that is on the device (on a CPU 8 rows of it);
    what the optimizer adds is left out."""
    rows = where.micro if device.type == "cuda" else min(where.micro, ROWS_ON_A_CPU)
    group = recipe.batch.group if rows % recipe.batch.group == 0 else rows
    sizes = {"batch.global_": rows, "batch.group": group, "batch.micro": rows, "data.repeats": 1}
    settled = opening.settle(recipe, {"precision": precision.resolve(recipe.precision, device), **sizes})
    task = build.build_task(settled, data, device).train()
    Dropping(task.model, "sample", recipe.seed).rest(rows)
    side = data.train_pipeline.size
    images = torch.zeros(rows, recipe.model.in_chans, side, side, dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(rows, dtype=torch.int64, device=device)
    done, began = -WARM, time.perf_counter()
    while done < 1 or time.perf_counter() - began < seconds:
        if done == 0:
            began = time.perf_counter()
        with precision.autocast(settled.precision, device):
            example = task.example(images, labels, None, 0, 0)
            outputs = task.model(example.inputs)
        task.rows(outputs, example.target).mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += 1
    return done * rows / (time.perf_counter() - began)


def _copied(images: torch.Tensor, device: torch.device) -> float:
    """Seconds that a micro-batch's copy to the device takes; nothing on a CPU."""
    if device.type == "cpu":
        return 0.0
    began = time.perf_counter()
    images.to(device, non_blocking=True)
    torch.cuda.synchronize(device)
    return time.perf_counter() - began
