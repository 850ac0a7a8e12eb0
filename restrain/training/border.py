"""What happens between two optimizer steps, in this order: evaluate, save, leave.

The order is what makes a run exact: an evaluation that was interrupted is repeated after the resume; the journal and
the ledger are on the disk before the checkpoint that vouches for them; a rank leaves only when its save is done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from restrain.errors import WorldError
from restrain.insight.profile import Profile
from restrain.run.checkpoint import Writer
from restrain.run.lease import Lease
from restrain.survival import signals
from restrain.survival.signals import Flag
from restrain.training.evaluate import Interrupted
from restrain.training.recorder import Recorder
from restrain.training.state import RunState
from restrain.training.tripwires import EXIT_TRIPPED, Tripped, Tripwires
from restrain.training.vector import Reading, StepVector


@dataclass(frozen=True)
class Cadence:
    """When things are due, of finished steps. ``save_seconds`` is by rank 0's clock, the rest a pure function."""

    total: int
    evaluate: Callable[[int], bool]
    save: Callable[[int], bool]
    save_seconds: float | None = None
    best: str | None = None
    better: str = "higher"
    max_bad: float = 1.0
    seen: Callable[[int], int] = lambda steps: 0  # samples of the first steps


@dataclass(frozen=True)
class Outcome:
    """Why the run left: its state for ``run.json``, and the exit code."""

    state: str
    exit_code: int


class Border:
    """The events between steps.

    Args:
        evaluate: ``evaluate(leave) -> metrics`` (``eval/...``), or None where the data has no evaluation set.
        recorder, lease: rank 0's; None elsewhere.
    """

    def __init__(
        self,
        state: RunState,
        cadence: Cadence,
        writer: Writer,
        *,
        evaluate: Callable[[Callable[[], bool]], dict[str, float]] | None,
        recorder: Recorder | None = None,
        lease: Lease | None = None,
        rank: int = 0,
        replaced: Callable[[int, Sequence[Any]], None] = lambda step, rows: None,
        profile: Profile | None = None,
        tripwires: Tripwires | None = None,
    ):
        self.tripwires, self.tripped = tripwires, list[Tripped]()
        self.state, self.cadence, self.writer, self.evaluate = state, cadence, writer, evaluate
        self.recorder, self.lease, self.rank = recorder, lease, rank
        self.replaced, self.profile = replaced, profile
        self.flag = Flag.NONE
        self.displaced = False
        self.saved_at = state.step
        self.last_save = time.monotonic()
        self.asked_to_save = False
        self.looked = False
        self.saves: dict[int, bool] = {}  # step -> whether it is the best
        self.vouched: int | None = None

    # ------------------------------------------------------------------------------------------------ asked in a step

    def asks(self) -> tuple[float, float]:
        """(a checkpoint is due, this rank must stop): this rank's part of the step's vector. Asked once a save."""
        save = 0.0
        seconds = self.cadence.save_seconds
        if self.rank == 0 and seconds is not None and not self.asked_to_save:
            self.asked_to_save = time.monotonic() - self.last_save >= seconds
            save = float(self.asked_to_save)
        stop = 1.0 if self.lease is not None and self.lease.displaced else 0.0
        return save, stop

    # ------------------------------------------------------------------------------------------------- between steps

    def begin(self) -> bool:
        """Before the first step of an attempt: repeat the evaluation that the last attempt was interrupted in.

        True: that one was interrupted too, and the run leaves; its checkpoint is as it was.
        """
        if self.recorder is not None:
            self.recorder.resume_clock()
        if self.profile is not None:
            self.profile.step(self.state.step)
        if self.evaluation_is_due():
            line, self.state.held = self.state.held, None
            best = self.evaluation(line)
            if self.state.evaluated_at == self.state.step:
                self.save(best)  # the checkpoint of this step does not know its evaluation yet: replace it
        return self.flag != Flag.NONE or self.hopeless

    def after_step(self, vector: StepVector) -> bool:
        """After each step; True: the run leaves here. Called once where no step was left to train."""
        step = self.state.step
        self.writer.poll()
        self.vouch()
        if not self.looked:  # a library that puts its own handlers in place has done so by now
            self.looked = True
            if not signals.installed():
                signals.reinstall()
        if self.profile is not None:
            self.profile.step(step)
        due = self.evaluation_is_due()
        last = step >= self.cadence.total
        planned = due or last or (self.cadence.save(step) and step != self.saved_at)
        readings = vector.read(leave=0 if planned else 1)
        if any(r.save or r.leaving for r in readings) and not planned:
            readings += vector.read()
            planned = True
        line = self.record(readings, hold=step if due else None)
        self.count_replaced(readings)
        hopeless = self.look(readings)
        if not planned and not hopeless:
            return False
        self.flag = max([self.flag, *(r.flag for r in readings)])
        self.displaced = any(r.stop for r in readings)
        if self.displaced:
            return True
        best = False
        if due and self.flag == Flag.NONE:
            best = self.evaluation(line)
        elif due:
            self.state.held = line
        leaving = last or self.flag != Flag.NONE or self.hopeless
        if leaving or best or any(r.save for r in readings) or self.cadence.save(step):
            self.save(best)
        if leaving:
            self.writer.wait()
        if self.recorder is not None:
            self.recorder.resume_clock()
        return leaving

    def count_replaced(self, readings: Sequence[Reading]) -> None:
        """Add up what all ranks replaced, over all attempts; raises WorldError on all of them beyond the budget."""
        replaced = 0
        for r in readings:
            replaced += r.replaced
        if not replaced:
            return
        self.state.replaced += replaced
        seen, budget = self.cadence.seen(self.state.step), self.cadence.max_bad
        if self.state.replaced > max(10, budget * seen):
            raise WorldError(
                f"Too many bad samples: {self.state.replaced} of {seen} had to be replaced over the whole run; "
                f"data.max_bad={budget:g} allows {max(10, int(budget * seen))}. They are listed in bad_samples*.jsonl "
                f"of the run folder. Repair the data, or raise data.max_bad."
            )

    def look(self, readings: Sequence[Reading]) -> bool:
        """Whether a value of these steps breaks a tripwire that stops the run."""
        if self.tripwires is None or not self.tripwires.waiting:
            return False
        for r in readings:
            batch = self.cadence.seen(r.step) - self.cadence.seen(r.step - 1)
            metrics = {"train/loss": r.loss / batch, "train/top1": 100.0 * r.correct / batch}
            self.trip(r.step, metrics | {"train/grad_norm": r.grad_norm})
        return self.hopeless

    def trip(self, step: int, metrics: dict[str, float]) -> None:
        """Look at the tripwires, and say which break."""
        for tripped in self.tripwires.look(step, metrics) if self.tripwires is not None else ():
            self.tripped.append(tripped)
            if self.recorder is not None:
                self.recorder.progress.notice(str(tripped))

    @property
    def hopeless(self) -> bool:
        """Whether a tripwire has broken that stops the run."""
        return any(tripped.wire.act == "stop" for tripped in self.tripped)

    def probed(self, step: int, joins: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> None:
        """Write down what the probes read in a step; on disk before a checkpoint of it, as the journal is."""
        if self.recorder is not None:
            self.recorder.probed(step, joins, values)

    def evaluation_is_due(self) -> bool:
        step = self.state.step
        return (
            self.evaluate is not None
            and 0 < step != self.state.evaluated_at
            and (step >= self.cadence.total or self.cadence.evaluate(step))
        )

    def record(self, readings: list[Reading], hold: int | None) -> str | None:
        """Write the readings down; the line of step ``hold`` is returned, to be written with its evaluation."""
        if self.recorder is None:
            return None
        held = None
        for r in readings:
            line = self.recorder.step(r)
            if r.step == hold:
                held = line
            else:
                self.recorder.write(r.step, line)
        return held

    def evaluation(self, line: str | None) -> bool:
        """Evaluate and write it down; True when it is the best so far. An interrupted one changes nothing."""
        assert self.evaluate is not None
        state = self.state
        try:
            metrics = self.evaluate(lambda: signals.flag() != Flag.NONE)
        except Interrupted:
            # Another rank's signal may be the reason: any flag will do here, the exit code is settled in `leave_code`.
            self.flag = max(self.flag, signals.flag(), Flag.USR1)
            state.held = line
            return False
        state.evaluated_at, state.held = state.step, None
        if self.recorder is not None:
            self.recorder.write(state.step, line or f'{{"step": {state.step}}}', metrics)
        best = self.is_best(metrics)
        if self.recorder is not None:
            shown = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
            self.recorder.progress.evaluated(shown, *self.in_short(metrics))
        self.trip(state.step, metrics)
        return best

    def in_short(self, metrics: dict[str, float]) -> tuple[str, str]:
        """(last, best) for the bar: of the metric that chooses BEST."""
        metric, best = self.cadence.best, self.state.best
        if metric is None or best is None:
            return "", ""
        name = metric.removeprefix("eval/")
        return f"{name} {metrics[metric]:.4g}", f"{name} {best['value']:.4g} at step {best['step']}"

    def is_best(self, metrics: dict[str, float]) -> bool:
        metric = self.cadence.best
        if metric is None:
            return False
        value, best = metrics[metric], self.state.best
        if math.isnan(value):
            return False
        better = best is None or (value > best["value"] if self.cadence.better == "higher" else value < best["value"])
        if better:
            self.state.best = {"metric": metric, "value": value, "step": self.state.step}
        return better

    def save(self, best: bool) -> None:
        """Start to write a checkpoint of this step; returns once its snapshot is taken."""
        state = self.state
        if self.recorder is not None:
            assert self.lease is not None
            self.lease.check()
            self.recorder.sync()
        self.saves[state.step] = best
        self.writer.save(state.step, state.tensors(), state.scalars(), best=best)
        self.saved_at, self.last_save, self.asked_to_save = state.step, time.monotonic(), False

    def finish(self) -> None:
        """After the last step: wait for the save in flight; a displaced process says who took over."""
        if self.displaced and self.lease is not None:
            self.lease.check()
        self.writer.wait()
        self.vouch()
        if self.profile is not None:
            self.profile.close()

    def vouch(self) -> None:
        """Tell the mirrors of a checkpoint that was committed since the last look."""
        step = self.writer.committed
        if step is None or step == self.vouched:
            return
        self.vouched = step
        best = self.saves.pop(step, False)
        if self.recorder is not None:
            self.recorder.durable(step, self.writer.folder / f"step-{step}", best)

    def close(self, sound: bool) -> None:
        """Stop writing. ``sound``: false when an error is being told already, which no other one may replace."""
        if self.recorder is not None:
            self.recorder.close(keep_errors=not sound)

    def outcome(self) -> Outcome:
        if self.displaced:
            return Outcome("interrupted", 1)
        if self.state.step >= self.cadence.total and not self.evaluation_is_due():
            return Outcome("finished", 0)
        if self.hopeless and self.flag == Flag.NONE:
            return Outcome("interrupted", EXIT_TRIPPED)
        return Outcome("interrupted", signals.exit_code(self.flag))
