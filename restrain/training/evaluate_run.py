"""Evaluating a run's checkpoint on its own, after or beside training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from restrain.errors import UserError
from restrain.parallel.world import World
from restrain.recipe import load
from restrain.run import checkpoint, lockfile
from restrain.training import build, opening, placement
from restrain.training.evaluate import evaluate
from restrain.training.loaded import locate


@dataclass(frozen=True)
class Evaluation:
    """``weights``: which ones of the checkpoint; ``what``: on which data; ``notices``: checkpoints passed over."""

    checkpoint: Path
    weights: str
    what: str
    metrics: dict[str, float]
    notices: list[str]


# What an evaluation reads of a recipe; any other override would change nothing, or ask for another network.
READ = ("data", "resolution", "loss", "evaluate", "parallel", "precision", "batch.micro")


def evaluate_run(path: Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Exact metrics of a run folder (its BEST, else its newest) or of one ``step-N`` folder, in this process."""
    located = locate(path)
    run, at, notices = located.run, located.checkpoint, located.notices
    lockfile.read(run / "recipe.lock.yaml")
    _refuse_idle(overrides)
    resolved = load(str(run / "recipe.lock.yaml"), overrides)
    recipe = resolved.recipe
    world = World()
    device = placement.device_of(recipe, world)
    data = build.open_data(recipe)
    if data.evaluation is None:
        raise UserError(f"{path}: data.name={recipe.data.name} has no evaluation set here. Set data.eval to one.")
    recipe = opening.settle(
        recipe, opening.autos(recipe, build.resolved_autos(recipe, data, device), run / "recipe.lock.yaml")
    )
    where = placement.place(recipe, world, device, data.pixels)
    torch.set_num_threads(where.threads)

    reader = checkpoint.Reader(at)
    plan = build.build_plan(recipe, data, [])
    task = build.build_task(recipe, data, device)
    state = build.build_state(recipe, task, plan, build.total_steps(recipe, plan), device)
    state.restore_tensors(reader, kinds=("param", "buffer", "ema"))
    reader.close()
    loader = build.build_eval_loader(recipe, data, world, where)
    with state.ema.swap(task.model) if state.ema is not None else nullcontext():
        metrics = evaluate(task, loader, device=device, number_format=recipe.precision, flip=recipe.evaluate.flip)
    return Evaluation(
        at,
        "EMA weights" if state.ema is not None else "weights",
        f"{int(data.evaluation.counts.sum()):,} samples of data.name={recipe.data.name}",
        {f"eval/{name}": value for name, value in metrics.items()},
        notices,
    )


def _refuse_idle(overrides: Sequence[str]) -> None:
    for text in overrides:
        key = text.partition("=")[0]
        if not any(key == one or key.startswith(one + ".") for one in READ):
            raise UserError(
                f"command line: {key} cannot be set here: an evaluation takes the network and its weights as they "
                f"are. What may be set is {', '.join(READ)}."
            )
