"""What ``restrain probe``, ``lesion`` and ``grow`` look at: a network with weights, and rows of its data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from restrain import draws
from restrain.data.loader import MicroBatch
from restrain.errors import RestrainError, WorldError
from restrain.models.norm import GroupedBatchNorm, set_group
from restrain.parallel import precision
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.run import checkpoint
from restrain.training import build, network
from restrain.training.inputs import like_inputs
from restrain.training.loaded import Located, load_weights, locate
from restrain.training.placement import Placement
from restrain.training.task import Task

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Rows of data as the network takes them: ``inputs``, their ``target``; ``what``: where they come from."""

    inputs: Tensor
    target: Tensor
    what: str


@dataclass(frozen=True)
class Subject:
    """A network on the host in fp32 or fp64, in evaluation mode, every parameter with a gradient. ``what``: which
    weights it has; ``data``: None where they cannot be opened, for the reason ``without``."""

    recipe: Recipe
    task: Task
    what: str
    data: build.Data | None
    without: str = ""
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
    data, why = _opened(loaded.recipe)
    if data is not None:
        build.check_tokens(loaded.recipe, data, loaded.info.get("tokenizer"), located.run)
    what = f"weights after step {located.step:,} of {located.run}"
    return Subject(loaded.recipe, _task(loaded.recipe, loaded.model, data), what, data, why, located.notices)


def of_recipe(recipe: Recipe, name: str) -> Subject:
    """Fresh weights. BatchNorms take the statistics of the batch: running ones say nothing before the first step."""
    number_format = "fp64" if recipe.precision == "fp64" else "fp32"
    data, why = _opened(recipe)
    recipe = build.with_classes(recipe.model_copy(update={"precision": number_format}), data)
    task = _task(recipe, network.build_model_on(recipe, CPU, recipe.seed, gradients=True), data)
    set_group(task.model, None)  # of all rows that there will be
    for module in task.model.modules():
        if isinstance(module, GroupedBatchNorm):
            module.train()
    return Subject(recipe, task, f"fresh weights of {name} (seed {recipe.seed})", data, why)


def _opened(recipe: Recipe) -> tuple[build.Data | None, str]:
    try:
        return build.open_data(recipe), ""
    except RestrainError as error:
        return None, str(error)


def _task(recipe: Recipe, model: nn.Module, data: build.Data | None) -> Task:
    if data is None and recipe.data.kind == "images":  # whose task asks for the scale of the pixels alone
        nothing: Any = None
        data = build.Data(nothing, None, nothing, nothing, recipe.data.mean, recipe.data.std)
    task = build.task_around(recipe, model, data)  # pyright: ignore[reportArgumentType]
    task.eval().requires_grad_(True)
    return task


def batch_of(subject: Subject) -> Batch:
    """Rows of the run's first training step, not mixed; random ones where the data is absent.

    As many as a BatchNorm group has, but at least 8, so that means over rows say something, and at most 32.
    """
    recipe = subject.recipe
    count = min(recipe.batch.global_, max(8, min(recipe.batch.group, 32)))
    if subject.data is not None:
        samples, labels = _samples(recipe, subject.data, count)
        what = f"{count} rows of the first training step"
    else:
        samples, labels = _random(recipe, count)
        what = f"{count} random rows, as the data cannot be opened ({subject.without})"
    example = subject.task.example(samples, labels, None, 0, 0)
    return Batch(example.inputs, example.target, what)


def _samples(recipe: Recipe, data: build.Data, count: int) -> tuple[Tensor, Tensor]:
    """(samples, labels) of the first ``count`` rows of the first step."""
    plan = build.build_plan(recipe, data, [])
    whole, group = recipe.batch.global_, recipe.batch.group
    micro = next(size for size in range(group, whole + 1, group) if whole % size == 0 and size >= count)
    total = build.total_steps(recipe, plan)
    loader = build.build_train_loader(recipe, data, plan, World(), Placement("cpu", micro, 1, 2), 0, total)
    try:
        found: MicroBatch = next(iter(loader)).micros[0]
        return found.images[:count].clone(), found.labels[:count].clone()
    finally:
        loader.close()


def _random(recipe: Recipe, count: int) -> tuple[Tensor, Tensor]:
    """(standard normal images or uniform tokens, labels), from keys."""
    classes = recipe.model.classes
    assert isinstance(classes, int)
    dtype = precision.dtype_of_weights(recipe.precision)
    shape = list(like_inputs(recipe, count, dtype).shape)
    tokens = recipe.data.kind == "tokens"
    if tokens:
        shape[1] += 1  # a window's last token is said, not seen
    keys = draws.mix(recipe.seed, draws.name_key("probe"), np.arange(math.prod(shape)))
    drawn = torch.from_numpy(draws.integers(keys, classes) if tokens else draws.normal(keys))
    return (drawn if tokens else drawn.to(dtype)).view(shape), torch.arange(count) % classes
