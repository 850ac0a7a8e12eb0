"""``restrain grow``: a run's network made deeper by blocks that are identities, in a new run that trains on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

from restrain import __version__
from restrain.errors import UserError
from restrain.models import build_model, residual_blocks
from restrain.models.growth import match, source, zeroed
from restrain.optim.optimizers import state_slots
from restrain.recipe import Recipe, differences, is_placement, load, to_yaml
from restrain.recipe.checks import show
from restrain.recipe.model_names import family_of
from restrain.run import checkpoint, journal, lockfile
from restrain.run.folder import RunFolder
from restrain.training import build
from restrain.training.inputs import image_sides
from restrain.training.loaded import load_weights
from restrain.training.state import RunState
from restrain.training.subject import CPU, Subject, batch_of, newest


@dataclass(frozen=True)
class Grown:
    """``folder``: the new run; ``name``: of its network; ``start``: the checkpoint that it was made of; ``blocks``: how
    many there were and are; ``new``: those that were added; ``rows``: on what both networks gave the same logits."""

    folder: Path
    name: str
    start: Path
    step: int
    total: int
    blocks: tuple[int, int]
    new: list[str]
    rows: str
    notices: list[str]


def grow(
    path: Path, to: str, folder: Path | None = None, overrides: Sequence[str] = (), place: str = "spread"
) -> Grown:
    """Make a new run in ``folder`` of the newest checkpoint of the run ``path``, with the network ``to`` in its place.

    ``to`` is empty where an override of ``model.shape`` makes the same family deeper.

    Old blocks keep weights, statistics and optimizer state; new ones have branches of zero and an optimizer state of
    zero, so that both networks compute the same logits. Journal and ledger go on: the samples were seen.

    Raises:
        UserError: the networks do not fit, the new blocks cannot be identities, or nothing would be left to train.
    """
    located = newest(path)
    lock = lockfile.read(located.run / "recipe.lock.yaml")
    was = load(str(located.run / "recipe.lock.yaml")).recipe
    changes = [*([f"model.name={to}"] if to else []), *overrides]
    recipe = load(str(located.run / "recipe.lock.yaml"), changes).recipe
    _check_changes(was, recipe)
    run = RunFolder(folder or Path("runs") / recipe.model.name / f"{datetime.now():%Y%m%d-%H%M%S}-grown")
    if run.path.exists() and any(run.path.iterdir()):
        raise UserError(f"--run {run.path}: there is something already. Name a new folder.")
    data = build.open_data(recipe)
    with checkpoint.Reader(located.checkpoint) as reader:
        plan = build.build_plan(recipe, data, reader.scalars["segments"])
        total = build.total_steps(recipe, plan)
        if reader.step >= total:
            raise UserError(
                f"{located.checkpoint} is after step {reader.step}, and length={recipe.length} ends after step "
                f"{total}: nothing would be left to train. Add a longer length, such as length=30ep."
            )
        task = build.build_task(recipe, data, CPU)
        state = build.build_state(recipe, task, plan, total, CPU)
        added = _fill(state, reader, _matched(was, recipe, place), recipe)
        _take_over(state, reader, {"from": str(located.checkpoint), "was": was.model.name, "now": recipe.model.name})
        placement = reader.placement
    shown = _check_same(Subject(recipe, task, recipe.model.name, data), located.checkpoint)
    _write(run, located.run, recipe, lock, state, placement, changes)
    count = len(residual_blocks(task.model))
    blocks = (count - len(added), count)
    return Grown(
        run.path, recipe.model.name, located.checkpoint, state.step, total, blocks, added, shown, located.notices
    )


def _check_changes(was: Recipe, recipe: Recipe) -> None:
    """UserError for changes that would make another run of it, or networks that growth would change."""
    for key, before, now in differences(was, recipe):
        if key not in ("model.name", "length") and not key.startswith("model.shape.") and not is_placement(key):
            raise UserError(
                f"{key}={show(now)}: the run has {show(before)}, and only its depth and its length can grow. Change it "
                f"afterwards, with restrain resume and --allow {key}."
            )
    if recipe.model.join.name != "add":
        raise UserError(
            f"model.join.name is {recipe.model.join.name}: a new block is an identity where its join adds (add)."
        )
    if recipe.model.feedback == "random":
        raise UserError(
            "model.feedback is random: each layer's fixed matrix is drawn from its name, and in the deeper network the "
            "run's blocks have other names. Their weights would lose the matrices that they have aligned with."
        )


def _matched(was: Recipe, recipe: Recipe, place: str) -> dict[str, str]:
    with torch.device("meta"):
        shallow, deep = (build_model(one.model.model_dump(), sides=image_sides(one)) for one in (was, recipe))
    if (family_of(recipe.model.name) or ("",))[0] == "shared":
        place = "end"  # the tensors that a stage shares bear the name of one of its first blocks
    names = [[name for name, _ in residual_blocks(model)] for model in (shallow, deep)]
    try:
        found = match(names[0], names[1], place)
    except UserError as error:
        raise UserError(f"{was.model.name} cannot grow into {recipe.model.name}: {error}.") from None
    if len(names[0]) == len(names[1]):
        raise UserError(f"{recipe.model.name} has as many blocks as {was.model.name}: there is nothing to grow.")
    return found


@torch.no_grad()
def _fill(state: RunState, reader: checkpoint.Reader, matched: Mapping[str, str], recipe: Recipe) -> list[str]:
    """Copy what the checkpoint has, make new branches zero; the names of the new blocks."""
    blocks = [name for name, _ in residual_blocks(state.model)]
    there, used = set(reader.names()), set[str]()
    averages: list[tuple[str, torch.Tensor]] = []
    for name, tensor in state.named_tensors().items():
        base, _, kind = name.rpartition("|")
        origin = source(base, blocks, matched)
        if origin is None:
            averages += [(base, tensor)] if kind == "ema" else []
            continue
        wanted = f"{origin}|{kind}"
        if wanted not in there or reader.shape(wanted) != tuple(tensor.shape):
            if kind in state_slots(recipe.optimizer) and wanted not in there:
                raise UserError(
                    f"optimizer.name is {recipe.optimizer.name}, and {reader.path} has no such state ({kind}). The "
                    f"optimizer must be that of the run."
                )
            has = f"has the shape {list(reader.shape(wanted))}" if wanted in there else "is not"
            raise UserError(
                f"{recipe.model.name} does not continue {reader.path}: {base} ({kind}) has the shape "
                f"{list(tensor.shape)}, and {origin} {has} there. Only the depth may change."
            )
        used.add(wanted)
        reader.read_into(wanted, tensor.detach(), (0,) * tensor.ndim)
    if left := sorted(there - used):
        raise UserError(f"{recipe.model.name} does not continue {reader.path}: it has no place for {left[0]}.")
    added = [block for block in blocks if block not in matched]
    live = state.model.state_dict(keep_vars=True)
    for name in _zeroed(recipe):
        if name.startswith(tuple(f"{block}." for block in added)):
            live[name].detach().zero_()
    for name, average in averages:
        average.copy_(live[name])
    state.check_strides()
    return added


def _zeroed(recipe: Recipe) -> set[str]:
    section = recipe.model.model_dump()
    try:
        with torch.device("meta"):
            sides = image_sides(recipe)
            return zeroed(*(build_model(section | {"zero_init": wanted}, sides=sides) for wanted in (True, False)))
    except UserError as error:
        raise UserError(
            f"{recipe.model.name} cannot grow: its blocks have no branches that could be zero ({error})"
        ) from None


def _take_over(state: RunState, reader: checkpoint.Reader, grown: Mapping[str, str]) -> None:
    """The numbers of the checkpoint; what was best is of another network."""
    for name in reader.scalars.keys() - {"version"}:
        setattr(state, name, reader.scalars[name])
    state.best, state.tracker = None, {}
    state.interventions = [*state.interventions, {"at_step": state.step, "kind": "grow", **grown}]


@torch.no_grad()
def _check_same(deep: Subject, start: Path) -> str:
    """On what both networks were compared; UserError where their outputs differ in any bit."""
    batch = batch_of(deep)
    deep.task.eval()
    shallow: nn.Module = load_weights(start, "raw").model
    difference = float((deep.model(batch.inputs) - shallow(batch.inputs)).abs().max())
    if difference != 0.0:  # NaN as well
        raise UserError(
            f"{deep.recipe.model.name} cannot take over from {start}: its new blocks are no identities (the logits "
            f"differ by {difference:.3g}). A new block is one where its join adds (model.join.name=add, no scale on "
            f"the shortcut) and no norm follows the join (not model.transformer.order=post or deepnorm)."
        )
    return batch.what


def _write(
    run: RunFolder,
    origin: Path,
    recipe: Recipe,
    lock: str,
    state: RunState,
    placement: Mapping,
    changes: Sequence[str],
) -> None:
    run.create()
    run.begin_attempt()
    identity = {k: v for k, v in lockfile.identity(lock).items() if k != "sha256"} | {"from": None}
    for path in (origin / "metrics.jsonl", origin / "ledger.jsonl", *origin.glob("bad_samples*.jsonl")):
        if path.exists():
            shutil.copyfile(path, run.path / path.name)
            journal.truncate_after(run.path / path.name, state.step, run.attempt_dir)
    writer = checkpoint.Writer(run.checkpoints, 0, 1, run.attempt or 1, recipe.checkpoint.keep, placement)
    writer.save(state.step, state.tensors(), state.scalars())
    writer.wait()
    before = RunFolder(origin).read_info()
    run.update_info(
        {
            "recipe": before.get("recipe", identity.get("recipe")),
            "changes": _changes(before.get("changes", []), changes),
            "state": "interrupted",
            "step": state.step,
            "interventions": state.interventions,
        }
    )
    # Last: a folder with a lock is a run.
    run.write_lock(lockfile.render(to_yaml(recipe), identity, __version__))


def _changes(before: Sequence[str], more: Sequence[str]) -> list[str]:
    """``key=value`` of both, the later of one key."""
    found = {one.partition("=")[0]: one for one in [*before, *more]}
    return list(found.values())
