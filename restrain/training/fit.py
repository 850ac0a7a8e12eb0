"""``fit``: open the run folder, build, train, leave. One straight line, the same on a laptop and on every rank."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from restrain.data.progress import console_reporter
from restrain.errors import RestrainError
from restrain.insight import machine
from restrain.parallel import distributed, environment
from restrain.parallel.environment import Surroundings
from restrain.parallel.layout import SHARDED, ZERO
from restrain.parallel.startup import Told, agree
from restrain.parallel.world import World
from restrain.recipe import Recipe, Resolved, is_placement, leaves, load
from restrain.recipe.verdict import judge
from restrain.recipe.writing import flow
from restrain.run import checkpoint, journal
from restrain.run.folder import RunFolder
from restrain.run.lease import Lease
from restrain.training import build, forks, lightning, network, opening, placement, start_weights
from restrain.training.attempt import Attempt
from restrain.training.inputs import image_sides
from restrain.training.on_device import OnDevice
from restrain.training.opening import Opening
from restrain.training.own import Own
from restrain.training.step import Run, StepSettings


@dataclass(frozen=True)
class Result:
    """How an attempt ended. ``metrics``: of the last evaluation (``eval/...``), and ``train/loss`` and ``train/top1``
    averaged over the last epoch; rank 0 knows them. ``already``: the run was finished before. ``tripped``: the
    tripwires that broke."""

    exit_code: int
    state: str
    step: int
    metrics: dict[str, float]
    already: bool = False
    tripped: list[str] = field(default_factory=list)


def fit(
    resolved: Resolved,
    path: Path,
    world: World,
    *,
    allow: Sequence[str] = (),
    fork: str | None = None,
    own: Own | None = None,
    around: Surroundings | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Result:
    """Train ``resolved`` in the run folder ``path``, from wherever it stands, until it is done or told to leave.

    ``fork``: ``RUN[@STEP]`` to branch off from. ``around``: what was found and set in the environment, for run.json.
    """
    if world.rank:
        say = lambda text: None  # noqa: E731
    recipe, own, around = resolved.recipe, own or Own(), around or Surroundings()
    device = placement.device_of(recipe, world)
    if device.type == "cuda" and world.cores:
        environment.bind(distributed.addresses(world), world.local_rank, world.cores, around)
    choose_algorithms(recipe.deterministic)
    alone = recipe.parallel.strategy in (*SHARDED, *ZERO)
    told = distributed.connect(world, device, alone, resolved.site.start_timeout.seconds())
    folder = RunFolder(path)
    lease = Lease(folder.path) if world.rank == 0 else None
    try:
        agree(told, "recipe", {key: flow(value) for key, value in leaves(recipe).items()})
        begins = told.first_rank(lambda: str(forks.fork_of(fork, path) or "") if fork else "")
        at = Path(begins) if begins else None
        data = _open_data(recipe, told, own)
        settled, layout = told.first_rank(lambda: _settle(recipe, folder, data, world, device, at, own))
        recipe = opening.settle(recipe, settled)
        decoder = build.use_decoder(data, recipe)
        facts = build.identity(resolved.name, recipe, data) | {"decoder": decoder}
        agree(told, "data", {key: str(value) for key, value in facts.items()})
        where = placement.Placement(**layout | {"device": str(device)})
        torch.set_num_threads(where.threads)
        opened = Opening(**told.first_rank(lambda: _open(folder, lease, recipe, resolved, data, allow, at, own)))
        if opened.finished:
            info = folder.read_info()
            say(f"{path} is finished: {_reached(info)}")
            return Result(0, "finished", opened.step, info.get("metrics", {}), already=True)
        folder.join_attempt(opened.attempt)
        if world.size > 1:
            environment.record_into(folder.attempt_dir, around)
        told.started()
        return _train(Attempt(recipe, folder, lease, world, device, where, data, opened, own, around), say)
    except RuntimeError as error:
        explained = distributed.explained(error, told)
        if explained is not error:
            with suppress(RuntimeError):  # before the attempt has a folder
                distributed.write_collectives(folder.attempt_dir / f"collectives-{world.rank:04d}.json")
        told.fail(explained)
        raise explained from error
    except BaseException as error:
        told.fail(error)
        raise
    finally:
        told.started()
        if lease is not None:
            lease.release()
        if sys.exc_info()[0] is None:  # with an error, leaving the group could wait for ranks that wait for this one
            distributed.leave(world)


def choose_algorithms(deterministic: bool) -> None:
    """Deterministic kernels, or the fastest of cuDNN's for each shape, found by trying; before CUDA starts."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic


def _open_data(recipe: Recipe, told: Told, own: Own) -> build.Data:
    """Rank 0 goes first, since it may have to index the set; the others then find the index."""
    opened: list[build.Data] = []

    def first() -> None:
        with console_reporter() as reporter:
            opened.append(build.open_data(recipe, reporter, own.stages))

    told.first_rank(first)
    return opened[0] if opened else build.open_data(recipe, stages=own.stages)


def _settle(
    recipe: Recipe,
    folder: RunFolder,
    data: build.Data,
    world: World,
    device: torch.device,
    fork: Path | None,
    own: Own,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each ``auto`` becomes, and the placement. On rank 0, so that all ranks have the same, and one tells what
    cannot be."""
    autos = opening.autos(recipe, build.resolved_autos(recipe, data, device), folder.lock_file)
    recipe = opening.settle(recipe, {key: value for key, value in autos.items() if key == "model.classes"})
    forks.check_start(recipe, int(data.train.counts.sum()), fork, own.model)
    start_weights.check(recipe, folder, fork, image_sides(recipe), own.model, data)
    need = network.need_of(recipe, device, world, own.model)
    where = placement.place(recipe, world, device, data.pixels, trains=True, need=need)
    placement.check_layout(recipe, where.layout(world), device)
    network.check_offload(recipe, where.layout(world), where.micro, world, own.model)
    network.check_model(recipe, own.model, where.tensor, device)
    build.check_task(recipe, data, own)
    return autos, where.as_dict()


def _open(
    folder: RunFolder, lease: Lease | None, recipe: Recipe, resolved: Resolved, data: build.Data, allow, fork, own: Own
) -> dict:
    assert lease is not None
    folder.create()
    taken = lease.acquire()
    identity = build.identity(resolved.name, recipe, data) | start_weights.identity(recipe, folder)
    identity |= own.identity(recipe)
    opened = opening.open_run(folder, recipe, identity, allow=allow, fork=fork, own=own.model)
    folder.update_info({"recipe": resolved.name, "changes": _changes(folder, resolved, opened)})
    if recipe.data.kind == "tokens":  # so that the run alone can say what its tokens are
        folder.update_info({"tokenizer": build.described_tokenizer(data)})
    if taken:
        opened.notices.insert(0, taken)
    return vars(opened)


def _changes(folder: RunFolder, resolved: Resolved, opened: Opening) -> list[str]:
    """The ``key=value`` that the run has over the recipe it is named after, those allowed later included."""
    known = folder.read_info().get("changes")
    if known is None:
        typed = [key for key, origin in resolved.origins.items() if origin.layer == "command line"]
        if not typed:
            return []
        values, before = leaves(resolved.recipe), leaves(load(str(resolved.path)).recipe)
        changed = [key for key in typed if not is_placement(key) and values[key] != before.get(key)]
        return [f"{key}={flow(values[key])}" for key in changed]
    changes = dict(one.partition("=")[::2] for one in known)
    changes |= {i["key"]: i["now"] for i in opened.interventions if i["kind"] == "allow"}
    return [f"{key}={value}" for key, value in changes.items()]


def _reached(info: dict[str, Any]) -> str:
    metrics = info.get("metrics", {})
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items()) or "nothing was evaluated"


def _train(attempt: Attempt, say: Callable[[str], None]) -> Result:
    recipe, folder, world, opened = attempt.recipe, attempt.folder, attempt.world, attempt.opened
    reader = checkpoint.Reader(Path(opened.checkpoint)) if opened.checkpoint else None
    plan = build.build_plan(recipe, attempt.data, reader.scalars["segments"] if reader else [])
    engine = network.build_engine(
        recipe, attempt.device, attempt.own.model, attempt.layout, world.rank, attempt.where.micro
    )
    task = build.task_around(recipe, engine.model, attempt.data, attempt.own).to(attempt.device)
    opened.notices += getattr(task.model, "notices", [])
    if reader is None:
        opened.notices += start_weights.begin(recipe, engine, folder)
    state = build.build_state(recipe, task, plan, build.total_steps(recipe, plan), attempt.device, engine)
    if reader is not None:
        with reader:
            state.restore(reader)
            opened.notices += attempt.not_bit_equal(reader)
    plan = attempt.intervene(plan, state)
    total = build.total_steps(recipe, plan)
    for line in attempt.announcement(plan, total, state):
        say(line)
    if world.rank == 0:
        facts = machine.circumstances(attempt.where.as_dict(), world.size)
        begun = {"number": opened.attempt, "after_step": state.step, "at": facts["started"], "world": world.size}
        begun["environment"] = attempt.around.as_dict()
        known = [one for one in folder.read_info().get("attempts", []) if one["number"] != opened.attempt]
        folder.update_info(
            facts | {"state": "running", "total": total, "failed_because": None, "attempts": [*known, begun]}
        )

    progress = attempt.progress(task, state, plan, total)
    border = attempt.border(task, state, plan, total, progress)
    settings = StepSettings(
        seed=recipe.seed,
        micro=attempt.where.micro,
        shape=attempt.data.shape,
        precision=recipe.precision,
        factor=build.build_factor(recipe, plan, total),
        clip=recipe.clip,
        drop_mode=recipe.model.drop_path.mode,
        work=network.block_work(recipe, engine.whole()),
    )
    start = state.step
    loader = build.build_train_loader(
        recipe, attempt.data, plan, attempt.rows, attempt.where, start, total, attempt.laps
    )
    batches = OnDevice(loader, attempt.device) if attempt.device.type == "cuda" else loader
    run = Run(task, state, plan, world, border, settings, attempt.probes(task, plan, total))
    sound = False
    try:
        with progress, lightning.quiet():
            if state.step < total:
                lightning.make_trainer(world, attempt.device).fit(run, train_dataloaders=batches)
            else:  # only what the last border still has to do: an evaluation that was interrupted
                border.begin()
                border.after_step(run.vector)
        border.finish()
        sound = True
    finally:
        loader.close()
        border.close(sound)
        if world.rank == 0 and not sound and not border.displaced:
            with suppress(RestrainError):  # the error that is being told matters more
                folder.update_info({"state": "failed", "failed_because": _because(sys.exc_info()[1])})
    outcome = border.outcome()
    if world.rank:
        return Result(outcome.exit_code, outcome.state, state.step, {})
    metrics = _metrics(folder)
    info: dict[str, Any] = {"step": state.step, "metrics": metrics, "best": state.best, "state": outcome.state}
    expect = recipe.expect
    if outcome.state == "finished" and expect is not None and expect.metric in metrics:
        info["expect"] = judge(expect, metrics[expect.metric], folder.read_info().get("changes", [])).as_dict()
    if border.tripped:
        known = folder.read_info().get("tripwires", [])
        info["tripwires"] = [*known, *(tripped.as_dict() for tripped in border.tripped)]
    folder.update_info(info)
    return Result(outcome.exit_code, outcome.state, state.step, metrics, tripped=[str(one) for one in border.tripped])


def _because(error: BaseException | None) -> str:
    """Why an attempt failed, in one paragraph."""
    told = " ".join(str(error).split())
    return told if isinstance(error, RestrainError) else f"{type(error).__name__}: {told}"[:600]


def _metrics(folder: RunFolder) -> dict[str, float]:
    """From the journal, which outlives any number of restarts."""
    lines = journal.read(folder.journal)
    evaluations = [line for line in lines if "eval/count" in line]
    metrics = {name: value for line in evaluations[-1:] for name, value in line.items() if name.startswith("eval/")}
    last = [line for line in lines if line.get("epoch") == lines[-1].get("epoch")]
    for name in ("train/loss", "train/top1"):
        values = [line[name] for line in last if name in line]
        if values:
            metrics[name] = sum(values) / len(values)
    return metrics
