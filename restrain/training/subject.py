"""What ``restrain probe``, ``lesion`` and ``grow`` look at: a network with weights, and rows of its data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from restrain import draws
from restrain.data.loader import MicroBatch
from restrain.errors import RestrainError, WorldError
from restrain.models.norm import GroupedBatchNorm
from restrain.parallel import precision
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.run import checkpoint
from restrain.training import build
from restrain.training.classify import Classify, build_loss
from restrain.training.loaded import Located, load_weights, locate
from restrain.training.own import Own
from restrain.training.placement import Placement

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rows:
    """Rows of data as the network takes them: ``inputs``, their ``target``; ``what``: where they come from."""

    inputs: Tensor
    target: Tensor
    what: str


@dataclass(frozen=True)
class Subject:
    """A network on the host in fp32 or fp64, in evaluation mode, every parameter with a gradient. ``what``: which
    weights it has."""

    recipe: Recipe
    task: Classify
    what: str
    notices: list[str] = field(default_factory=list)

    @property
    def model(self) -> nn.Module:
        return self.task.model


def newest(path: Path) -> Located:
    """The newest checkpoint of a run, or the one that is named (``step-N``)."""
    if not (path / "recipe.lock.yaml").is_file():
        return locate(path)
    found = checkpoint.newest(path / "checkpoints")
    if found.path is None:
        why = f" that is whole: {'; '.join(found.problems)}" if found.problems else ""
        raise WorldError(f"{path} has no checkpoint{why}. A run writes one when it is stopped, and at its end.")
    return Located(path, found.path, [f"passed over: {one}" for one in found.problems])


def of_run(located: Located) -> Subject:
    """A run's own weights (not their average)."""
    loaded = load_weights(located.checkpoint, "raw")
    return Subject(
        loaded.recipe,
        task_of(loaded.recipe, loaded.model),
        f"weights after step {located.step:,} of {located.run}",
        located.notices,
    )


def of_recipe(recipe: Recipe, name: str) -> Subject:
    """Fresh weights. BatchNorms take the statistics of the batch: running ones say nothing before the first step."""
    number_format = "fp64" if recipe.precision == "fp64" else "fp32"
    recipe = recipe.model_copy(update={"precision": number_format})
    task = task_of(recipe, build.build_model_on(recipe, CPU, recipe.seed))
    for module in task.model.modules():
        if isinstance(module, GroupedBatchNorm):
            module.train()
    return Subject(recipe, task, f"fresh weights of {name} (seed {recipe.seed})")


def task_of(recipe: Recipe, model: nn.Module) -> Classify:
    """The recipe's task around a network, in evaluation mode, everything with a gradient."""
    make = Own().make_task(recipe)
    task = make(model, build_loss(recipe.loss), recipe.data.mean, recipe.data.std)
    task.eval().requires_grad_(True)
    return task


def rows(subject: Subject) -> Rows:
    """A BatchNorm group's worth of the run's first training samples, not mixed; random ones where the data is absent.

    At least 8 rows, so that means over rows say something.
    """
    recipe = subject.recipe
    group = recipe.batch.group
    count = min(recipe.batch.global_, -(-8 // group) * group)
    try:
        return _of_data(subject, count)
    except RestrainError as error:
        return _random(subject, count, f"{count} random rows, as the data cannot be opened ({error})")


def _of_data(subject: Subject, count: int) -> Rows:
    recipe = subject.recipe
    data = build.open_data(recipe)
    plan = build.build_plan(recipe, data, [])
    total = build.total_steps(recipe, plan)
    whole, group = recipe.batch.global_, recipe.batch.group
    micro = next(size for size in range(count, whole + 1, group) if whole % size == 0)
    loader = build.build_train_loader(recipe, data, plan, World(), Placement("cpu", micro, 1, 2), 0, total)
    try:
        found: MicroBatch = next(iter(loader)).micros[0]
        inputs, target = subject.task.normalise(found.images)[:count].clone(), found.labels[:count].clone()
    finally:
        loader.close()
    return Rows(inputs, target, f"{count} rows of the first training step")


def _random(subject: Subject, count: int, what: str) -> Rows:
    recipe = subject.recipe
    side = build.image_sides(recipe)[0]
    shape = (count, recipe.model.in_chans, side, side)
    keys = draws.mix(recipe.seed, draws.name_key("probe"), np.arange(math.prod(shape)))
    dtype = precision.dtype_of_weights(recipe.precision)
    inputs = torch.from_numpy(draws.normal(keys)).to(dtype).view(shape)
    return Rows(inputs, torch.arange(count) % recipe.model.classes, what)
