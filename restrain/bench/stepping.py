"""A run's own optimizer step without its data: rows of the recipe's shape, made once and trained again and again.

It is what ``fit`` builds, with the engine of the layout, precision, recomputation and compilation, and with what a run
does between two steps; but it evaluates and saves nothing, keeps no journal, and Lightning's loop is not around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from restrain import draws
from restrain.data import mix
from restrain.data.batches import MicroBatch, StepBatch
from restrain.data.order import Plan
from restrain.errors import RestrainError
from restrain.parallel import precision
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.run.checkpoint import Writer
from restrain.training import build, network, opening, placement
from restrain.training.border import Border, Cadence
from restrain.training.dry_run import made_up, unopened
from restrain.training.inputs import image_sides
from restrain.training.micro import PIXELS_A_STEP, PIXELS_A_TOKEN
from restrain.training.placement import Placement
from restrain.training.step import Run, StepSettings

EPOCH = 100_000  # steps: the schedule has hardly begun
NEVER = 10**12


def settle(recipe: Recipe, world: World, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each ``auto`` becomes in so many processes, and the placement. UserError for what cannot be."""
    found: dict[str, Any] = {"precision": precision.resolve(recipe.precision, device)}
    if not isinstance(recipe.model.classes, int):
        found["model.classes"] = _vocabulary(recipe)
    recipe = opening.settle(recipe, found)
    need = network.need_of(recipe, device, world)
    where = placement.place(recipe, world, device, pixels_of(recipe), trains=True, need=need)
    placement.check_layout(recipe, where.layout(world), device)
    network.check_model(recipe, None, where.tensor, device)
    return found, where.as_dict()


def _vocabulary(recipe: Recipe) -> int:
    """The outputs that the data need where they are there, else as many as ``restrain check`` takes."""
    try:
        return build.outputs_needed(recipe, build.open_data(recipe).train)
    except RestrainError:
        return build.UNKNOWN_VOCABULARY


def pixels_of(recipe: Recipe) -> int:
    """What a row counts where threads and micro-batches are chosen, as ``Data.pixels`` of data that are there."""
    if recipe.data.kind == "images":
        return image_sides(recipe)[0] ** 2
    return recipe.data.context * (PIXELS_A_STEP if recipe.data.kind == "sequences" else PIXELS_A_TOKEN)


@dataclass(frozen=True)
class Stepping:
    """A run, and the micro-batches of this rank that each of its steps is given."""

    run: Run
    micros: list[MicroBatch]

    def step(self) -> None:
        """One step, and what a run does before the next one."""
        self.alone()
        self.run.border.after_step(self.run.vector)

    def alone(self) -> None:
        """The step alone, at the end of which the host has not waited for the device."""
        self.run.step(StepBatch(self.run.state.step, 0, self.micros, 0.0, []))


def prepare(recipe: Recipe, world: World, device: torch.device, where: Placement, folder: Path) -> Stepping:
    """Build a run on this rank, of the ranks that are connected. ``recipe``: without any auto; ``folder``: an empty
    one."""
    return around(recipe, world, device, where, folder, *made_up(recipe, where.micro, device))


def around(
    recipe: Recipe,
    world: World,
    device: torch.device,
    where: Placement,
    folder: Path,
    samples: torch.Tensor,
    labels: torch.Tensor,
) -> Stepping:
    """As :func:`prepare`, on given rows: ``where.micro`` of them, with their labels, on the device."""
    run = _run(recipe, world, device, where, folder, samples.shape[1:])
    run.share_gradients()
    run.rehearse()
    return Stepping(run, _micros(run, recipe, where, samples, labels))


def _run(
    recipe: Recipe, world: World, device: torch.device, where: Placement, folder: Path, shape: Sequence[int]
) -> Run:
    batch, layout = recipe.batch.global_, where.layout(world)
    plan = Plan(EPOCH * batch, batch, recipe.batch.group, 1, [], recipe.data.repeats)
    total = max(1, build.total_steps(recipe, plan))
    engine = network.build_engine(recipe, device, None, layout, world.rank, where.micro)
    task = build.task_around(recipe, engine.model, unopened(recipe)).to(device).train()
    state = build.build_state(recipe, task, plan, total, device, engine)
    cadence = Cadence(NEVER, lambda step: False, lambda step: False)
    border = Border(state, cadence, Writer(folder, world.rank, world.size, 1), evaluate=None, rank=world.rank)
    factor = build.build_factor(recipe, plan, total)
    settings = StepSettings(
        seed=recipe.seed,
        micro=where.micro,
        shape=tuple(shape),
        precision=recipe.precision,
        factor=lambda step: factor(min(step, total - 1)),
        clip=recipe.clip,
        drop_mode=recipe.model.drop_path.mode,
        work=network.block_work(recipe, engine.whole()),
    )
    return Run(task, state, plan, world, border, settings)


def _micros(
    run: Run, recipe: Recipe, where: Placement, samples: torch.Tensor, labels: torch.Tensor
) -> list[MicroBatch]:
    """The same rows in each micro-step, mixed as those of the first step would be."""
    batch, prefix, side = recipe.batch, draws.mix(0, np.arange(where.micro), 0), samples.shape[-1]
    wanted = mix.Mix(recipe.seed, recipe.mix.mixup, recipe.mix.cutmix)
    _, parts = run.plan.local(0, run.rows.rank, run.rows.size, where.micro)
    micros = []
    for first, _ in parts:
        mixed = None
        if wanted.active(0):
            mixed = mix.draw(wanted, 0, first // batch.group, where.micro // batch.group, batch.group, (side, side))
        micros.append(MicroBatch(samples, labels, first, mixed, prefix, None))
    return micros
