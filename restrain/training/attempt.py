"""One start of a run on one rank: what has been resolved for it, and the parts that belong to its run folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from restrain.data.batches import EvalBatch
from restrain.data.laps import Laps
from restrain.data.order import Plan, ranks_a_group
from restrain.data.remote.urls import is_remote
from restrain.data.wds.stream import LOST, StreamSource
from restrain.insight.cost import input_macs
from restrain.insight.mistakes import Mistakes
from restrain.insight.probe import Probe, Sampler
from restrain.insight.profile import Profile
from restrain.insight.progress import Length, Progress
from restrain.insight.throughput import Hardware, Throughput
from restrain.parallel.environment import Surroundings
from restrain.parallel.layout import Layout
from restrain.parallel.world import World
from restrain.recipe import Recipe
from restrain.recipe.checks import show
from restrain.run import checkpoint
from restrain.run.folder import RunFolder
from restrain.run.journal import Journal
from restrain.run.lease import Lease
from restrain.run.mirrors import Mirror, TensorBoardMirror, WandbMirror, new_run_id
from restrain.run.mirrors.wandb import wandb_options
from restrain.training import build
from restrain.training.border import Border
from restrain.training.evaluate import Interrupted, evaluate
from restrain.training.inputs import like_inputs
from restrain.training.opening import Opening
from restrain.training.own import Own
from restrain.training.placement import Placement
from restrain.training.recorder import Recorder
from restrain.training.state import RunState
from restrain.training.task import Task
from restrain.training.tripwires import Tripwires
from restrain.training.waiting import Waiting


@dataclass(frozen=True)
class Attempt:
    """``recipe``: with every auto resolved. ``lease``: rank 0's, None elsewhere."""

    recipe: Recipe
    folder: RunFolder
    lease: Lease | None
    world: World
    device: torch.device
    where: Placement
    data: build.Data
    opened: Opening
    own: Own
    around: Surroundings = field(default_factory=Surroundings)
    laps: Laps = field(default_factory=Laps)

    @property
    def layout(self) -> Layout:
        """How the model lies over the ranks."""
        return self.where.layout(self.world)

    @property
    def rows(self) -> World:
        """This rank among those that see different rows."""
        return self.layout.rows(self.world)

    @property
    def circumstances(self) -> dict[str, Any]:
        """What bits may depend on besides the recipe: kept in each checkpoint's manifest."""
        parallel = self.recipe.parallel
        weights = "fp64" if self.recipe.precision == "fp64" else "fp32"
        computed = {
            "reduce": weights if self.where.strategy in ("single", "ddp") else parallel.reduce or weights,
            "offload": parallel.offload,
            "compile": parallel.compile,
            "deepspeed": dict(parallel.deepspeed),
        }
        return self.where.as_dict() | computed | {"world": self.world.size, "torch": torch.__version__}

    def announcement(self, plan: Plan, total: int, state: RunState) -> list[str]:
        """Lines for a person: what is trained, on what, in which steps, and where it goes on."""
        recipe, where, world, data = self.recipe, self.where, self.world, self.data
        wanted = getattr(recipe.data, "eval", None)
        evaluated = f"no evaluation set here (data.eval={show(wanted)}): nothing is evaluated"
        if data.evaluation is not None:
            evaluated = f"{int(data.evaluation.counts.sum()):,} evaluated every {recipe.evaluate.every}"
        samples = "windows" if recipe.data.kind == "tokens" else "samples"
        accumulation = recipe.batch.global_ // self.rows.size // where.micro
        ranks = ranks_a_group(recipe.batch.global_, recipe.batch.group, self.rows.size)
        spanning = f", each over {ranks} processes" if ranks > 1 else ""
        lines = [
            f"run folder {self.folder.path}",
            f"{recipe.model.name}, join {recipe.model.join.name}, {recipe.precision} on {world.size} x "
            f"{self.device.type}{self.layout.told}, {where.threads} thread(s)",
            f"{int(data.train.counts.sum()):,} training {samples}, {evaluated}",
            f"{total:,} steps of {recipe.batch.global_} ({world.size} process(es) x {accumulation} micro-batch(es) of "
            f"{where.micro}, groups of {recipe.batch.group}{spanning})",
        ]
        if where.because:
            lines.append(f"parallel.strategy=auto is {where.because}")
        if state.step:
            lines.append(f"attempt {self.opened.attempt}: going on after step {state.step} of {total}")
        elif self.opened.attempt > 1:
            lines.append(f"attempt {self.opened.attempt}: no checkpoint yet, beginning at step 1")
        lost = [LOST] if isinstance(self.data.train, StreamSource) else []
        return lines + lost + self.opened.notices

    def not_bit_equal(self, reader: checkpoint.Reader) -> list[str]:
        """One notice naming what differs from where the checkpoint was made and may move the last bits."""
        was, now = reader.placement, self.circumstances
        layout = ("device", "world", "strategy", "tensor", "shard", "micro", "threads")
        kept = (*layout, "reduce", "offload", "compile", "deepspeed", "torch")
        names = [name for name in kept if name in was]
        parts = [f"{name} {was[name]} -> {now[name]}" for name in names if was[name] != now[name]]
        if not parts:
            return []
        return [f"not bit-equal from here on ({', '.join(parts)}); samples, draws and schedule are the same"]

    def intervene(self, plan: Plan, state: RunState) -> Plan:
        """Record what was allowed to change; a changed batch goes on from the next sample of the old one's plan."""
        before, opened = state.interventions, self.opened
        state.interventions = before + [i for i in opened.interventions if i not in before]
        if any(i["kind"] == "fork" and i["at_step"] == state.step for i in opened.interventions):
            state.best, state.tracker = None, {}
        batch, group = self.recipe.batch.global_, self.recipe.batch.group
        if (batch, group) == (state.segments[-1]["batch"], state.segments[-1]["group"]):
            return plan
        epoch, position = plan.place(state.step)
        new = {"from_step": state.step, "epoch": epoch, "position": position, "batch": batch, "group": group}
        state.segments = [*state.segments, new]
        return build.build_plan(self.recipe, self.data, state.segments)

    def progress(self, task: Task, state: RunState, plan: Plan, total: int) -> Progress:
        """The bar, or the lines, of this start."""
        recipe, epoch = self.recipe, plan.steps_per_epoch
        size, unit = 1, "images" if recipe.data.kind == "images" else "sequences"
        if recipe.data.kind == "tokens":
            size, unit = self.data.train_pipeline.size, "tokens"
        length = Length(total, state.step, -(-total // epoch), epoch, recipe.batch.global_ * size, unit)
        hardware = Hardware.of(self.device, self.world.size, recipe.precision)
        return Progress(length, self.world.rank, Throughput(hardware, lambda: self.macs(state.engine.whole()) // size))

    def macs(self, model: torch.nn.Module) -> int:
        """Multiply-adds of a forward pass of one row."""
        side = self.data.train_pipeline.size if self.recipe.data.kind == "images" else None
        dtype = next(model.parameters()).dtype
        return input_macs(model, like_inputs(self.recipe, 1, dtype, side))

    # ------------------------------------------------------------------------------------------ parts of the run folder

    def border(self, task: Task, state: RunState, plan: Plan, total: int, progress: Progress) -> Border:
        return Border(
            state,
            build.build_cadence(self.recipe, plan, total, self.data.evaluation is not None),
            self.writer(),
            evaluate=self.evaluator(task, state, progress),
            recorder=self.recorder(task, plan, total, state, progress) if self.world.rank == 0 else None,
            lease=self.lease,
            rank=self.world.rank,
            replaced=self.bad_samples(progress),
            profile=self.profile(plan, total),
            tripwires=Tripwires(self.recipe.expect, lambda at: build.step_of(at, plan, total), state.looked_at),
        )

    def writer(self) -> checkpoint.Writer:
        return checkpoint.Writer(
            self.folder.checkpoints,
            self.world.rank,
            self.world.size,
            self.opened.attempt,
            self.recipe.checkpoint.keep,
            placement=self.circumstances,
            before_commit=self.lease.check if self.lease is not None else None,
        )

    def recorder(self, task: Task, plan: Plan, total: int, state: RunState, progress: Progress) -> Recorder:
        assert self.lease is not None
        cadence = self.recipe.track.every
        return Recorder(
            Journal(self.folder.journal, guard=self.lease.check),
            Journal(self.folder.ledger, guard=self.lease.check),
            progress,
            self.mirrors(state, progress),
            plan=plan,
            every=build.every(cadence, plan, total),
            seconds=cadence.seconds() if cadence.is_wall_clock else None,
            pixels=self.recipe.track.pixels,
            audited=not isinstance(self.data.train, StreamSource),
            accuracy=task.accuracy,
            probes=Journal(self.folder.probes, guard=self.lease.check) if self.recipe.track.probe else None,
            callbacks=self.own.callbacks,
            waiting=Waiting(self.laps, self.where.data_threads, is_remote(getattr(self.recipe.data, "root", None))),
        )

    def mirrors(self, state: RunState, progress: Progress) -> list[Mirror]:
        """Where the journal is mirrored to."""
        track, journal, warn = self.recipe.track, self.folder.journal, progress.notice
        found: list[Mirror] = []
        if track.tensorboard:
            found.append(TensorBoardMirror(self.folder.path, backlog=journal, warn=warn))
        if track.wandb.mode != "disabled":
            run_id = self.wandb_id(state)
            options = wandb_options(self.recipe, self.folder.path)
            found.append(WandbMirror(self.folder.path, run_id, options, backlog=journal, warn=warn))
        return found

    def wandb_id(self, state: RunState) -> str:
        """The id of wandb's run, which is born in the run folder before the first line is sent, and travels on."""
        run_id = self.folder.read_info().get("wandb_id") or state.tracker.get("id") or new_run_id()
        self.folder.update_info({"wandb_id": run_id})
        state.tracker = {"id": run_id}
        return run_id

    def evaluator(
        self, task: Task, state: RunState, progress: Progress
    ) -> Callable[[Callable[[], bool]], dict[str, float]] | None:
        """``evaluate(leave)``: metrics ``eval/...`` of the EMA where there is one, else of the weights."""
        if self.data.evaluation is None:
            return None
        loader = build.build_eval_loader(self.recipe, self.data, self.rows, self.where)
        counts = self.layout.place(self.world.rank)[2] == 0  # one rank of those that see the same rows

        def run(leave: Callable[[], bool]) -> dict[str, float]:
            mistakes, bad = Mistakes(self.device), []

            def observe(logits: torch.Tensor, batch: EvalBatch) -> None:
                if task.one_label and counts:
                    rows = (part.to(self.device) for part in (batch.labels, batch.valid, batch.index))
                    mistakes.add(logits, *rows)
                bad.extend(batch.bad)

            with state.ema.swap(task.model, Interrupted) if state.ema is not None else nullcontext():
                found = evaluate(
                    task,
                    loader,
                    device=self.device,
                    number_format=self.recipe.precision,
                    world=self.world.size,
                    rows=self.rows.size,
                    counts=counts,
                    leave=leave,
                    progress=progress,
                    flip=self.recipe.evaluate.flip,
                    observe=observe,
                )
                state.engine.rest()
            self.write_left_out(state.step, bad)
            if task.one_label:
                surest = mistakes.of_all_ranks(self.world.size)
                if self.world.rank == 0:
                    self.folder.write_mistakes(state.step, surest)
            return {f"eval/{name}": value for name, value in found.items()}

        return run

    def bad_samples(self, progress: Progress) -> Callable[[int, Sequence[Any]], None]:
        """Writes down the samples that could not be used; one file a rank, since ranks may be on different nodes."""
        names = self.data.train.names

        def write(step: int, replaced: Sequence[Any]) -> None:
            self._append_bad([_entry(step, r) | {"used_j": r.used_j} for r in replaced])
            for r in replaced:
                where = f"sample {r.j} ({r.key}) of {names[r.shard]}"
                progress.notice(f"step {step}: {where} replaced by sample {r.used_j}: {r.reason}")

        return write

    def write_left_out(self, step: int, bad: Sequence[Any]) -> None:
        """The samples that an evaluation left out. One that is repeated after a kill is not written twice."""
        entries = [_entry(step, one) | {"split": "eval"} for one in bad]
        if entries and self._bad_file.exists():
            known = {line.strip() for line in self._bad_file.read_text().splitlines()}
            entries = [entry for entry in entries if json.dumps(entry) not in known]
        self._append_bad(entries)

    @property
    def _bad_file(self) -> Path:
        rank = self.world.rank
        return self.folder.path / ("bad_samples.jsonl" if rank == 0 else f"bad_samples-{rank:04d}.jsonl")

    def _append_bad(self, entries: Sequence[dict[str, Any]]) -> None:
        """On the disk before the checkpoint that counts them."""
        if entries:
            with self._bad_file.open("a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
                file.flush()
                os.fsync(file.fileno())

    def probes(self, task: Task, plan: Plan, total: int) -> Sampler | None:
        """What reads the joins: on rank 0 alone, whose rows stand for all."""
        cadence = self.recipe.track.probe
        if cadence is None or self.world.rank:
            return None
        due = build.every(cadence, plan, total)
        return Sampler(Probe(task.model), lambda step: step == 1 or due(step))

    def profile(self, plan: Plan, total: int) -> Profile | None:
        if self.recipe.profile is None:
            return None
        at = build.step_of(self.recipe.profile.at, plan, total)
        return Profile(at, self.recipe.profile.steps, self.folder.attempt_dir, self.world.rank)


def _entry(step: int, event: Any) -> dict[str, Any]:
    return {"step": step, "shard": event.shard, "j": event.j, "key": event.key, "reason": event.reason}
