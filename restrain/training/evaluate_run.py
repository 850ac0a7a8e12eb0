"""Evaluating a run's checkpoint on its own, after or beside training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from restrain.data.batches import EvalBatch
from restrain.errors import UserError
from restrain.insight.confusion import Confusion
from restrain.models.foreign.zoo import PREFIX
from restrain.parallel.world import World
from restrain.recipe import Recipe, load
from restrain.run import checkpoint, lockfile
from restrain.run.folder import RunFolder
from restrain.training import build, opening, placement, start_weights
from restrain.training.evaluate import evaluate
from restrain.training.loaded import locate
from restrain.training.task import Task


@dataclass(frozen=True)
class Evaluation:
    """``source``: what was evaluated; ``weights``: which ones of it; ``what``: on which data; ``notices``: checkpoints
    that were passed over; ``confusion``: None where a row has not one label; ``classes``: their names, or numbers."""

    source: str
    weights: str
    what: str
    metrics: dict[str, float]
    notices: list[str]
    confusion: Confusion | None
    classes: list[str]


# What an evaluation reads of a recipe; any other override would change nothing, or ask for another network.
READ = ("data", "resolution", "loss", "evaluate", "parallel", "precision", "batch.micro")


def evaluate_run(path: Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Exact metrics of a run folder (its BEST, else its newest) or of one ``step-N`` folder, in this process."""
    located = locate(path)
    lock = located.run / "recipe.lock.yaml"
    lockfile.read(lock)
    _refuse_idle(overrides)
    recipe, data, device = _opened(load(str(lock), overrides).recipe, str(path), lock)
    build.check_tokens(recipe, data, RunFolder(located.run).read_info().get("tokenizer"), located.run)
    plan = build.build_plan(recipe, data, [])
    task = build.build_task(recipe, data, device)
    state = build.build_state(recipe, task, plan, build.total_steps(recipe, plan), device)
    with checkpoint.Reader(located.checkpoint) as reader:
        _refuse_precision(recipe, reader)
        state.restore_tensors(reader, kinds=("param", "buffer", "ema"))
    with state.ema.swap(task.model) if state.ema is not None else nullcontext():
        weights = "EMA weights" if state.ema is not None else "weights"
        return _evaluated(recipe, data, device, task, (str(located.checkpoint), weights, located.notices))


def evaluate_network(name: str, overrides: Sequence[str] = ()) -> Evaluation:
    """Exact metrics of a network without a run: a recipe whose ``model.init`` says where weights are, or ``timm/NAME``,
    which is evaluated as ``imagenet_resnet50`` is, with timm's own weights unless ``model.init.from`` names others."""
    words = list(overrides)
    if name.startswith(PREFIX):
        chosen = any(word.startswith(("model.init=", "model.init.from=")) for word in words)
        words = [f"model.name={name}", *([] if chosen else ["model.init.from=timm"]), *words]
        resolved = load("imagenet_resnet50", words)
    else:
        resolved = load(name, words)
    if resolved.recipe.model.init is None:
        raise UserError(
            f"{name} is a recipe and no run, so it has no weights. Name a run, or say where weights are with "
            f"model.init.from=FILE.safetensors (or RUN, or timm)."
        )
    recipe, data, device = _opened(resolved.recipe, name, None)
    task = build.build_task(recipe, data, device)
    notices = start_weights.load_into(recipe, task.model)
    return _evaluated(recipe, data, device, task, (recipe.model.name, f"weights of {recipe.model.init.from_}", notices))  # type: ignore[union-attr]


def _opened(recipe: Recipe, what: str, lock: Path | None) -> tuple[Recipe, build.Data, torch.device]:
    """The recipe with every ``auto`` resolved (as in a run's lock), its data, and the device."""
    device = placement.device_of(recipe, World())
    data = build.open_data(recipe)
    if data.evaluation is None:
        raise UserError(f"{what}: data.name={recipe.data.name} has no evaluation set here. Set data.eval to one.")
    found = build.resolved_autos(recipe, data, device)
    return opening.settle(recipe, opening.autos(recipe, found, lock or Path("no-lock"))), data, device


def _evaluated(
    recipe: Recipe, data: build.Data, device: torch.device, task: Task, what: tuple[str, str, list[str]]
) -> Evaluation:
    assert data.evaluation is not None
    where = placement.place(recipe, World(), device, data.pixels)
    torch.set_num_threads(where.threads)
    loader = build.build_eval_loader(recipe, data, World(), where)
    confusion = Confusion(recipe.model.classes) if task.one_label else None
    number_format, flip = recipe.precision, recipe.evaluate.flip

    def observe(logits: Tensor, batch: EvalBatch) -> None:
        if confusion is not None:
            confusion.add(logits.cpu(), batch.labels, batch.valid)

    found = evaluate(task, loader, device=device, number_format=number_format, flip=flip, observe=observe)
    source, weights, notices = what
    rows = "samples" if task.one_label else "windows"
    return Evaluation(
        source,
        weights,
        f"{int(data.evaluation.counts.sum()):,} {rows} of data.name={recipe.data.name}",
        {f"eval/{name}": value for name, value in found.items()},
        notices,
        confusion,
        list(getattr(data.train, "classes", None) or map(str, range(recipe.model.classes))),
    )


def _refuse_precision(recipe: Recipe, reader: checkpoint.Reader) -> None:
    """fp64 needs weights in fp64: those of another run are stored in fp32."""
    stored = load(str(reader.path.parent.parent / "recipe.lock.yaml")).recipe.precision
    if (stored == "fp64") != (recipe.precision == "fp64"):
        raise UserError(
            f"precision={recipe.precision}, but the run's weights are of precision={stored}: fp64 and the others store "
            f"different numbers. Leave precision out, or take one of fp32, bf16, fp16, fp8 for a run in any of these."
        )


def _refuse_idle(overrides: Sequence[str]) -> None:
    for text in overrides:
        key = text.partition("=")[0]
        if not any(key == one or key.startswith(one + ".") for one in READ):
            raise UserError(
                f"command line: {key} cannot be set here: an evaluation takes the network and its weights as they "
                f"are. What may be set is {', '.join(READ)}."
            )
