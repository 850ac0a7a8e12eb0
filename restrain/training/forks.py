"""Where a run begins: at step 1, or at a checkpoint of another run (``--from RUN[@STEP]``). Asked before any folder is
made, so that a wrong wish leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from restrain.data.order import Plan, Segment
from restrain.errors import UserError, WorldError
from restrain.models.build import build_model
from restrain.models.foreign.contract import Build
from restrain.optim.optimizers import state_slots
from restrain.recipe import Recipe
from restrain.run import checkpoint, lockfile
from restrain.run.manifest import Damaged, verify
from restrain.training.inputs import image_sides


def fork_of(text: str, folder: Path) -> Path | None:
    """:func:`fork_point` for the run in ``folder``; None where that run exists: its lock remembers where it began.

    Raises UserError where the run that exists did not begin from another one.
    """
    lock = folder / "recipe.lock.yaml"
    if not lock.is_file():
        return fork_point(text)
    if lockfile.identity(lockfile.read(lock)).get("from") is None:
        raise UserError(
            f"--from {text}: {folder} holds a run already, which did not begin from another one. Name a new folder "
            f"with --run, or leave --from out to go on with it."
        )
    return None


def fork_point(text: str) -> Path:
    """The checkpoint that ``--from RUN[@STEP]`` names, every byte of it verified; an absolute path.

    Raises UserError where RUN or STEP is wrong, WorldError where the checkpoint is damaged.
    """
    name, at, step = (text, "", "") if (Path(text) / "checkpoints").is_dir() else text.rpartition("@")
    if not at:
        name, step = text, ""
    run = Path(name)
    folder = Path(os.path.abspath(run / "checkpoints"))
    if not folder.is_dir():
        raise UserError(
            f"--from {text}: {run} is not a run folder (it has no checkpoints folder). Write --from RUN or "
            f"--from RUN@STEP, with the folder of a run."
        )
    if not at:
        found = checkpoint.newest(folder)
        if found.path is None:
            why = f" that is whole: {'; '.join(found.problems)}" if found.problems else ""
            raise WorldError(f"--from {text}: {folder} has no checkpoint{why}.")
        return found.path
    steps = sorted(int(p.name[5:]) for p in folder.glob("step-*") if p.name[5:].isdecimal())
    if not step.isdecimal() or int(step) not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise UserError(f"--from {text}: {run} has no checkpoint of step {step!r}. Steps there: {there}.")
    try:
        verify(folder / f"step-{int(step)}")
    except Damaged as error:
        others = ", ".join(str(other) for other in steps if other != int(step)) or "none"
        raise WorldError(f"--from {text}: {error}. Name another step; others there: {others}.") from None
    return folder / f"step-{int(step)}"


def check_start(recipe: Recipe, samples: int, fork: Path | None, own: Build | None = None) -> None:
    """Raises UserError where nothing would be trained, or where the checkpoint is that of another network."""
    per_epoch = samples // recipe.batch.global_
    total = recipe.length.steps(per_epoch)
    if total < 1:
        raise UserError(
            f"length={recipe.length} is less than one step: {samples} samples in batches of "
            f"batch.global={recipe.batch.global_} are {per_epoch} steps an epoch."
        )
    if fork is None:
        return
    with checkpoint.Reader(fork) as reader:
        step, segments = reader.scalars["step"], reader.scalars["segments"]
        stored = reader.manifest["tensors"]
    if recipe.length.unit == "ep":  # in steps of the run that is branched off from, whose batches may have been others
        plan = Plan(samples, segments[0]["batch"], segments[0]["group"], 1, [Segment(**s) for s in segments[1:]])
        total = plan.step_at(recipe.length.value)
    if step >= total:
        raise UserError(
            f"--from: {fork} is after step {step}, and length={recipe.length} ends after step {total}: nothing would "
            f"be trained. Set a longer length, or begin from an earlier step with --from RUN@STEP."
        )
    misfit = _misfit(recipe, {name: tuple(entry["shape"]) for name, entry in stored.items()}, own)
    if misfit:
        raise UserError(
            f"--from: {fork} does not fit the recipe: {misfit}. Model, optimizer and ema must be those of the run that "
            f"is branched off from."
        )


def check_allowed(recipe: Recipe, at: Path, own: Build | None = None) -> None:
    """Raises UserError where a change that was allowed asks for another network than the run's checkpoint holds."""
    with checkpoint.Reader(at) as reader:
        stored = {name: tuple(entry["shape"]) for name, entry in reader.manifest["tensors"].items()}
        step = reader.step
    if misfit := _misfit(recipe, stored, own):
        raise UserError(
            f"--allow: {at} does not fit the changed recipe: {misfit}. Model, optimizer and ema are those that a run "
            f"began with; nothing was changed."
        )
    if recipe.length.unit == "st" and recipe.length.value < step:
        raise UserError(
            f"--allow length: the run is after step {step} already, length={recipe.length} ends before. Nothing was "
            f"changed."
        )


def _misfit(recipe: Recipe, stored: dict[str, tuple[int, ...]], own: Build | None = None) -> str | None:
    """The first difference between what a checkpoint holds and what the recipe's model and optimizer need."""
    with torch.device("meta"):
        model = build_model(recipe.model.model_dump(), sides=image_sides(recipe), own=own)
    wanted = {f"{name}|param": tuple(p.shape) for name, p in model.named_parameters()}
    for name, shape in wanted.items():
        plain = name.removesuffix("|param")
        if name not in stored:
            return f"the recipe's model has a parameter {plain}, the checkpoint has none"
        if stored[name] != shape:
            return f"{plain} has the shape {list(shape)} in the recipe's model, {list(stored[name])} in the checkpoint"
    extra = [name for name in stored if name.endswith("|param") and name not in wanted]
    if extra:
        return f"the checkpoint has a parameter {extra[0].removesuffix('|param')}, the recipe's model has none"
    kinds = {name.rpartition("|")[2] for name in stored}
    if recipe.ema is not None and "ema" not in kinds:
        return "ema is set, and the checkpoint has no such state (ema)"
    wanted, there = state_slots(recipe.optimizer), kinds - {"param", "buffer", "ema", "scaler"}
    if wanted and wanted != there:
        return (
            f"optimizer.name is {recipe.optimizer.name}, and the checkpoint has no such state "
            f"({', '.join(sorted(wanted))}), but {', '.join(sorted(there)) or 'none'}"
        )
    return None
