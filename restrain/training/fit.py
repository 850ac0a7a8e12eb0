"""``fit``: open the run folder, build, train, leave. One straight line, the same on a laptop and on every rank."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from restrain.data.order import Plan
from restrain.insight import machine
from restrain.insight.profile import Profile
from restrain.insight.progress import Progress
from restrain.parallel import distributed
from restrain.parallel.world import World
from restrain.recipe import Recipe, Resolved, to_yaml
from restrain.run import checkpoint
from restrain.run.folder import RunFolder
from restrain.run.journal import Journal
from restrain.run.lease import Lease
from restrain.run.mirrors import WandbMirror, new_run_id
from restrain.training import build, opening, placement
from restrain.training.border import Border
from restrain.training.evaluate import evaluate
from restrain.training.opening import Opening
from restrain.training.recorder import Recorder
from restrain.training.state import RunState
from restrain.training.step import Run, StepSettings


@dataclass(frozen=True)
class Result:
    """How an attempt ended. ``metrics``: of the last evaluation (``eval/...``), empty when there was none."""

    exit_code: int
    state: str
    step: int
    metrics: dict[str, float]


def fit(
    resolved: Resolved,
    path: Path,
    world: World,
    *,
    allow: Sequence[str] = (),
    fork: Path | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Result:
    """Train ``resolved`` in the run folder ``path``, from wherever it stands, until it is done or told to leave."""
    quiet = say if world.rank == 0 else lambda text: None
    recipe = resolved.recipe
    device = placement.device_of(recipe, world)
    if recipe.deterministic:
        torch.use_deterministic_algorithms(True)
    distributed.connect(world, device)
    told = distributed.Told(world)
    data = _open_data(recipe, told, quiet)

    folder = RunFolder(path)
    resolved_autos = build.resolved_autos(recipe, data, device)
    recipe = opening.settle(recipe, told.first_rank(lambda: opening.autos(recipe, resolved_autos, folder.lock_file)))
    distributed.refuse_unequal(world, hashlib.sha256(to_yaml(recipe).encode()).hexdigest())
    where = placement.place(recipe, world, device, data.pixels)
    torch.set_num_threads(where.threads)

    lease = Lease(folder.path) if world.rank == 0 else None
    try:
        opened = Opening(**told.first_rank(lambda: _open(folder, lease, recipe, resolved.name, data, allow, fork)))
        if opened.finished:
            quiet(f"{path} is finished: {_reached(folder)}")
            return Result(0, "finished", opened.step, folder.read_info().get("metrics", {}))
        folder.join_attempt(opened.attempt)
        return _train(recipe, folder, lease, world, device, where, data, opened, quiet)
    except RuntimeError as error:
        raise distributed.explained(error, world) from error
    finally:
        if lease is not None:
            lease.release()
        distributed.leave(world)


def _open_data(recipe: Recipe, told: distributed.Told, say: Callable[[str], None]) -> build.Data:
    """Rank 0 goes first, since it may have to index the set; the others then find the index."""
    opened: list[build.Data] = []
    told.first_rank(lambda: opened.append(build.open_data(recipe, say)))
    return opened[0] if opened else build.open_data(recipe)


def _open(folder: RunFolder, lease: Lease | None, recipe: Recipe, name: str, data: build.Data, allow, fork) -> dict:
    assert lease is not None
    folder.create()
    taken = lease.acquire()
    opened = opening.open_run(folder, lease, recipe, build.identity(name, recipe, data), allow=allow, fork=fork)
    if taken:
        opened.notices.insert(0, taken)
    return vars(opened)


def _train(
    recipe: Recipe,
    folder: RunFolder,
    lease: Lease | None,
    world: World,
    device: torch.device,
    where: placement.Placement,
    data: build.Data,
    opened: Opening,
    say: Callable[[str], None],
) -> Result:
    reader = checkpoint.Reader(Path(opened.checkpoint)) if opened.checkpoint else None
    plan = build.build_plan(recipe, data, reader.scalars["segments"] if reader else [])
    task = build.build_task(recipe, data, device)
    state = build.build_state(recipe, task, plan, build.total_steps(recipe, plan), device)
    if reader is not None:
        state.restore(reader)
        opened.notices += _not_bit_equal(reader, where, world)
        reader.close()
    plan = _intervene(recipe, data, plan, state, opened)
    total = build.total_steps(recipe, plan)

    said = _announce(recipe, folder, plan, total, data, where, world, opened, state)
    progress = Progress(total, state.step, total / plan.steps_per_epoch, recipe.batch.global_, world.rank)
    for line in said:
        say(line)
    recorder = None
    if world.rank == 0:
        assert lease is not None
        folder.update_info(machine.circumstances(where.as_dict(), world.size) | {"state": "running", "total": total})
        recorder = _recorder(recipe, folder, lease, plan, total, state, progress)
    writer = checkpoint.Writer(
        folder.checkpoints,
        world.rank,
        world.size,
        opened.attempt,
        recipe.checkpoint.keep,
        placement=where.as_dict() | {"world": world.size, "torch": torch.__version__},
        before_commit=lease.check if lease is not None else None,
    )
    loader = build.build_train_loader(recipe, data, plan, world, where, state.step, total)
    run = Run(
        task,
        state,
        plan,
        world,
        Border(
            state,
            build.build_cadence(recipe, plan, total, data.evaluation is not None),
            writer,
            evaluate=_evaluator(recipe, data, task, state, world, device, where, progress),
            recorder=recorder,
            lease=lease,
            rank=world.rank,
            replaced=_replaced(folder, world, progress),
            profile=_profile(recipe, folder, plan, total, world),
        ),
        StepSettings(
            seed=recipe.seed,
            micro=where.micro,
            classes=recipe.model.classes,
            precision=recipe.precision,
            factor=build.build_factor(recipe, plan, total),
            clip=recipe.clip,
        ),
    )
    failed = True
    try:
        with progress, _quiet_lightning():
            if state.step < total:
                _trainer(world, device).fit(run, train_dataloaders=loader)
            else:  # only what the last border still has to do: an evaluation that was interrupted
                run.border.begin(run)
                run.border.after_step(run)
        run.border.finish()
        failed = False
    finally:
        loader.close()
        if recorder is not None:
            recorder.close(keep_errors=failed)
            if failed:
                folder.set_state("failed")
    outcome = run.border.outcome()
    if world.rank == 0:
        folder.update_info({"step": state.step, "metrics": run.border.final, "best": state.best})
        folder.set_state(outcome.state)
    return Result(outcome.exit_code, outcome.state, state.step, run.border.final)


def _trainer(world: World, device: torch.device) -> L.Trainer:
    """Lightning launches, places and strategises; it saves, logs, counts and catches nothing."""
    one = [device.index] if device.type == "cuda" else 1
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=one if world.size == 1 else world.local_size,
        num_nodes=world.nodes,
        strategy="auto" if world.size == 1 else distributed.Replicated(),
        plugins=[LightningEnvironment()],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    # Both are private; tests/training/test_lightning.py fails when Lightning renames them. The first would put
    # Lightning's handlers over ours, the second asks all ranks for a signal, with a host synchronisation, every batch.
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's banners, and the warnings that do not apply to a run that Restrain drives."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*No `?val_dataloader.*|.*`val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=".*srun.*command is available on your system.*")
            yield
    finally:
        logger.setLevel(level)


def _intervene(recipe: Recipe, data: build.Data, plan: Plan, state: RunState, opened: Opening) -> Plan:
    """Record what was allowed to change; a changed batch goes on from the next sample of the old one's plan."""
    before = state.interventions
    state.interventions = before + [i for i in opened.interventions if i not in before]
    if any(i["kind"] == "fork" and i["at_step"] == state.step for i in opened.interventions):
        state.best, state.tracker = None, {}
    batch, group = recipe.batch.global_, recipe.batch.group
    if (batch, group) == (state.segments[-1]["batch"], state.segments[-1]["group"]):
        return plan
    epoch, position = plan.place(state.step)
    new = {"from_step": state.step, "epoch": epoch, "position": position, "batch": batch, "group": group}
    state.segments = [*state.segments, new]
    return build.build_plan(recipe, data, state.segments)


def _not_bit_equal(reader: checkpoint.Reader, where: placement.Placement, world: World) -> list[str]:
    """One notice naming what differs from where the checkpoint was made and may move the last bits."""
    now = where.as_dict() | {"world": world.size, "torch": torch.__version__}
    was = reader.manifest["placement"]
    parts = [
        f"{k} {was[k]} -> {now[k]}"
        for k in ("device", "world", "micro", "threads", "torch")
        if k in was and was[k] != now[k]
    ]
    return (
        [f"not bit-equal from here on ({', '.join(parts)}); samples, draws and schedule are the same"] if parts else []
    )


def _announce(recipe, folder, plan, total, data, where, world, opened, state) -> list[str]:
    """What a run says before its first step."""
    samples = int(data.train.counts.sum())
    evaluated = "no evaluation set: nothing is evaluated"
    if data.evaluation is not None:
        evaluated = f"{int(data.evaluation.counts.sum()):,} evaluated every {recipe.evaluate.every}"
    accumulation = recipe.batch.global_ // world.size // where.micro
    lines = [
        f"run folder {folder.path}",
        f"{recipe.model.name}, join {recipe.model.join.name}, {recipe.precision} on {world.size} x "
        f"{where.device.partition(':')[0]}, {where.threads} thread(s)",
        f"{samples:,} training samples, {evaluated}",
        f"{total:,} steps of {recipe.batch.global_} ({world.size} process(es) x {accumulation} micro-batch(es) of "
        f"{where.micro}, groups of {recipe.batch.group})",
    ]
    if state.step:
        lines.append(f"attempt {opened.attempt}: going on after step {state.step} of {total}")
    elif opened.attempt > 1:
        lines.append(f"attempt {opened.attempt}: no checkpoint yet, beginning at step 1")
    return lines + opened.notices


def _recorder(
    recipe: Recipe, folder: RunFolder, lease: Lease, plan: Plan, total: int, state: RunState, progress: Progress
) -> Recorder:
    info = folder.read_info()
    run_id = info.get("wandb_id") or state.tracker.get("id") or new_run_id()
    folder.update_info({"wandb_id": run_id})
    settings = recipe.track.wandb
    mirror = None
    if settings.mode != "disabled":
        mirror = WandbMirror(
            settings.mode,
            folder.wandb,
            run_id,
            recipe.model_dump(mode="json"),
            project=settings.project,
            entity=settings.entity,
            name=settings.name or folder.path.name,
            tags=list(settings.tags),
            warn=progress.notice,
        )
    cadence = recipe.track.every
    return Recorder(
        Journal(folder.journal, guard=lease.check),
        Journal(folder.ledger, guard=lease.check),
        progress,
        mirror,
        plan=plan,
        every=build.every(cadence, plan, total),
        seconds=cadence.seconds() if cadence.is_wall_clock else None,
        pixels=recipe.track.pixels,
    )


def _evaluator(recipe, data, task, state, world, device, where, progress) -> Callable | None:
    """``evaluate(leave)``: metrics ``eval/...`` of the EMA where there is one, else of the weights."""
    if data.evaluation is None:
        return None

    loader = build.build_eval_loader(recipe, data, world, where)

    def run(leave: Callable[[], bool]) -> dict[str, float]:
        with state.ema.swap(task.model) if state.ema is not None else nullcontext():
            found = evaluate(
                task,
                loader,
                device=device,
                number_format=recipe.precision,
                world=world.size,
                leave=leave,
                progress=progress,
            )
        return {f"eval/{name}": value for name, value in found.items()}

    return run


def _replaced(folder: RunFolder, world: World, progress: Progress) -> Callable[[int, Sequence[Any]], None]:
    """Writes down the samples that could not be used; one file a rank, since ranks may be on different nodes."""
    name = "bad_samples.jsonl" if world.rank == 0 else f"bad_samples-{world.rank:04d}.jsonl"

    def write(step: int, replaced: Sequence[Any]) -> None:
        with (folder.path / name).open("a") as file:
            for r in replaced:
                entry = {"step": step, "shard": r.shard, "j": r.j, "key": r.key, "reason": r.reason, "used_j": r.used_j}
                file.write(json.dumps(entry) + "\n")
                progress.notice(f"step {step}: sample {r.key} of {r.shard} replaced by its neighbour: {r.reason}")

    return write


def _profile(recipe: Recipe, folder: RunFolder, plan: Plan, total: int, world: World) -> Profile | None:
    if recipe.profile is None:
        return None
    at = recipe.profile.at.steps(plan.steps_per_epoch, total)
    return Profile(at, recipe.profile.steps, folder.attempt_dir, world.rank)


def _reached(folder: RunFolder) -> str:
    metrics = folder.read_info().get("metrics", {})
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items()) or "nothing was evaluated"
