"""One optimizer step of a run, from its micro-batches to the committed update. The hot path: read it first.

B rows of a global batch; a rank has B / world of them, in micro-batches of whole groups.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from restrain import draws
from restrain.data.loader import MicroBatch, StepBatch
from restrain.data.order import Plan
from restrain.insight.probe import Probe, Sampler
from restrain.models.norm import StagedStatistics
from restrain.optim.stepping import guarded_step
from restrain.parallel import precision
from restrain.parallel.engine import Engine
from restrain.parallel.world import World
from restrain.run import ledger
from restrain.survival import signals
from restrain.training.border import Border
from restrain.training.dropping import Dropping
from restrain.training.state import RunState
from restrain.training.task import Task
from restrain.training.vector import StepVector

AHEAD = 64  # steps whose rows and learning rates are worked out at once


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know of the recipe. ``factor``: step (0-based) -> what the base learning rates are times."""

    seed: int
    micro: int
    shape: tuple[int, ...]  # of a sample: channels, height, width of an image; tokens of a window
    precision: str
    factor: Callable[[int], float]
    clip: float | None = None
    drop_mode: str = "sample"  # model.drop_path.mode
    work: Mapping[str, int] | None = None  # multiply-adds of each block's branches, where a mode can leave them out


class Run(L.LightningModule):
    """Drives a task through a run: manual optimisation, one Lightning batch an optimizer step.

    Lightning sees one epoch of the remaining steps. Everything between two steps (journal, evaluation, checkpoints,
    leaving) is :class:`restrain.training.border.Border`'s.
    """

    def __init__(
        self,
        task: Task,
        state: RunState,
        plan: Plan,
        world: World,
        border: Border,
        settings: StepSettings,
        probes: Sampler | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.task, self.state, self.plan, self.world, self.border, self.settings = (
            task,
            state,
            plan,
            world,
            border,
            settings,
        )
        self.probes = probes
        self.engine: Engine = state.engine
        layout = self.engine.layout
        self.rows = layout.rows(world)  # this rank among those that see different rows
        self.counts = layout.place(world.rank)[2] == 0  # one rank of those that see the same rows
        self.place = next(task.model.parameters()).device
        self.statistics = StagedStatistics(task.model)
        self.vector = StepVector(self.place, world.size)
        self.dropping = Dropping(task.model, settings.drop_mode, settings.seed, settings.work)
        self.ahead: dict[int, tuple[int, list[tuple[int, np.ndarray]], float]] = {}

    # ----------------------------------------------------------------------------------------------- Lightning's hooks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.state.optimizer

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # each micro-batch moves in its own turn, in the step

    def on_train_start(self) -> None:
        signals.reinstall()
        self.rehearse()
        if self.border.begin():
            self.trainer.should_stop = True

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        self.step(batch)

    # Lightning asks for the arguments of this method in every step; where they are written down, that costs nothing.
    training_step.__signature__ = inspect.signature(training_step)  # pyright: ignore[reportFunctionMemberAccess]

    def on_train_batch_end(self, outputs: Any, batch: StepBatch, batch_idx: int) -> None:
        if self.border.after_step(self.vector):
            self.trainer.should_stop = True

    def share_gradients(self) -> None:
        """Called by the strategy when the ranks are connected."""
        self.engine.share_gradients(self.place)

    def rehearse(self) -> None:
        """One forward and backward pass that changes nothing, before the first step.

        DDP orders its buckets anew after its first backward pass, so without this the first step after a resume would
        add gradients in another order than the same step of an unbroken run.
        """
        if self.world.size == 1 or not self.engine.rehearses:
            return
        micro = self.settings.micro
        inputs = self.task.blank(micro, self.settings.shape, self.place)
        self.dropping.rest(micro)
        with self.engine.micro_step(last=True), precision.autocast(self.settings.precision, self.place):
            outputs = self.engine.net(inputs)
        outputs.float().sum().backward()
        self.engine.clear()
        self.statistics.discard()

    # ------------------------------------------------------------------------------------------------------- the step

    def planned(self, step: int) -> tuple[int, list[tuple[int, np.ndarray]], float]:
        """Of a step: its epoch, (first row, positions [micro]) of this rank's micro-batches, factor of the base rates.

        Worked out for many steps at once, because the same calls one by one, in caches full of the network, take
        several times as long.
        """
        if step not in self.ahead:
            rank, world, micro = self.rows.rank, self.rows.size, self.settings.micro
            steps = range(step, step + AHEAD)
            self.ahead = {s: (*self.plan.local(s, rank, world, micro), self.settings.factor(s)) for s in steps}
        return self.ahead[step]

    def step(self, batch: StepBatch) -> None:
        """Train one optimizer step on this rank's micro-batches."""
        state = self.state
        step = state.step
        epoch, parts, factor = self.planned(step)
        if batch.step != step or len(batch.micros) != len(parts):
            raise AssertionError(f"the loader handed over step {batch.step} for step {step}")
        self.engine.clear()
        self.dropping.begin(step, self.plan.segment(step).group)
        rows_here = len(parts) * self.settings.micro
        probe = self.probes.probe if self.probes is not None and self.probes.due(step + 1) else None
        losses, corrects, hash_, pixels = [], [], 0, 0
        for number, (micro, (first, positions)) in enumerate(zip(batch.micros, parts, strict=True)):
            loss, correct = self.micro_step(micro, step, first, rows_here, number == len(parts) - 1, probe)
            if number == 0 and probe is not None:
                self.border.probed(step + 1, *probe.take(self.to_mean_loss(len(parts))))
                probe = None  # the first micro-batch stands for all
            losses.append(loss)
            corrects.append(correct)
            # Positions come from the plan, never from the loader: a row in the wrong place changes the hash.
            hash_ += ledger.row_sum(micro.prefix, positions)
            if micro.pixels is not None:
                pixels += ledger.pixel_sum(micro.pixels, epoch, positions)
        if batch.replaced:
            self.border.replaced(step + 1, batch.replaced)
        loss, correct = sum(losses[1:], losses[0]), sum(corrects[1:], corrects[0])
        told = [batch.wait / self.rows.size, float(len(batch.replaced))]
        if not self.counts:  # another rank tells of the same rows
            loss, correct, told, hash_, pixels = torch.zeros_like(loss), torch.zeros_like(correct), [0.0, 0.0], 0, 0
        gradients = self.engine.gradients()
        vector = self.vector.reduce(
            loss,
            correct,
            [*told, *self.border.asks(), signals.encode(signals.flag())],
            hash_ & draws.MASK,
            pixels & draws.MASK,
            self.engine.square(gradients),
        )
        lr = self.update(step, vector, factor, gradients)
        state.step = step + 1
        self.vector.keep(state.step, epoch, lr, vector, self.dropping.dropped)

    def to_mean_loss(self, micros: int) -> float:
        """What makes gradients of a micro-step's loss those of its rows' mean loss."""
        return micros / (float(self.state.scaler.scale) if self.state.scaler is not None else 1.0)

    def micro_step(
        self, micro: MicroBatch, step: int, first: int, rows_here: int, last: bool, probe: Probe | None = None
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward of one micro-batch; (sum of row losses, number of correct rows), on the device."""
        samples = micro.images.to(self.place, non_blocking=True)
        labels = micro.labels.to(self.place, non_blocking=True)
        self.dropping.write(first, len(samples))
        with self.engine.micro_step(last):
            with precision.autocast(self.settings.precision, self.place):
                example = self.task.example(samples, labels, micro.mix, step, first)
                with probe.attached() if probe is not None else nullcontext():
                    outputs = self.engine.net(example.inputs)
            rows = self.task.rows(outputs, example.target)
            # The loss is the mean over the global batch. DDP averages over ranks, so a row weighs one over the
            # number of this rank's rows; said as the rows' gradient, the mean need not be computed and differentiated.
            weight = torch.full_like(rows, 1.0 / rows_here)
            if self.state.scaler is not None:
                weight = weight * self.state.scaler.scale
            self.engine.backward(rows, weight)
        self.statistics.accumulate()
        return rows.detach().sum(dtype=torch.float64), self.task.correct(outputs.detach(), example.answer)

    @torch.no_grad()
    def update(self, step: int, vector: Tensor, factor: float, gradients: list[Tensor]) -> float:
        """Clip, guard and commit the step; returns the learning rate, which is ``factor`` times its base.

        The guard: a loss or gradient norm that is not finite leaves weights, optimizer state, EMA and statistics as
        they were, decided on the device; only for optimizers that cannot be masked there does the host wait to know.
        """
        state, statistics = self.state, self.statistics
        if self.engine.shares_norm:
            norm = vector[2].sqrt().to(gradients[0].dtype)
        else:
            # As torch.nn.utils.get_total_norm, which first sorts the gradients by device and dtype: here they have one.
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # pyright: ignore[reportPrivateImportUsage]
        scale = None
        if state.scaler is not None:
            scale = 1.0 / state.scaler.scale
            norm = norm * scale
        if self.settings.clip is not None:
            coefficient = (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
            scale = coefficient if scale is None else scale * coefficient
        if scale is not None:
            torch._foreach_mul_(gradients, scale.to(gradients[0].device))  # pyright: ignore[reportPrivateImportUsage]
        vector[2] = norm
        zero = vector[0] + norm
        zero = zero - zero  # NaN where loss or norm is not finite: fewer kernels than isfinite
        ok, found_inf = zero == 0, (zero != 0).float()

        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.engine.commit(state.optimizer, found_inf, guarded_step)
        if statistics.norms:
            if self.rows.size > 1:
                torch.distributed.all_reduce(statistics.sums)
            segment = self.plan.segment(step)
            statistics.commit(segment.batch // segment.group, ok, self.dropping.idle)
        if state.ema is not None:
            state.ema.update(step, ok)
        if state.scaler is not None:
            state.scaler.update(found_inf)
        return state.optimizer.param_groups[0]["lr"]
