"""What a run writes down of each step: ledger and journal lines, mirrors, the progress bar. Only rank 0 has one."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from restrain.data.order import Plan
from restrain.errors import WorldError
from restrain.insight.progress import Progress
from restrain.run import ledger
from restrain.run.journal import Journal
from restrain.run.mirrors import Mirror
from restrain.run.numbers import loose, number
from restrain.run.probes import line as probe_line
from restrain.training.vector import Reading
from restrain.training.waiting import Waiting


class Recorder:
    """Turns readings into lines.

    Args:
        journal, ledger_file: the two files.
        plan: for the number of samples of a step.
        every, seconds: step -> whether the journal has a line for it; or a line every so many seconds.
        pixels: whether the ledger carries the pixel hash. audited: whether anybody can
            say what its hashes are to be. accuracy: whether the task has any.
        probes: the file of the probes' lines; None where the recipe has none.
        callbacks: told of each step. waiting: says when the data are waited for.
    """

    def __init__(
        self,
        journal: Journal,
        ledger_file: Journal,
        progress: Progress,
        mirrors: Sequence[Mirror],
        *,
        plan: Plan,
        every: Callable[[int], bool],
        seconds: float | None = None,
        pixels: bool = False,
        audited: bool = True,
        accuracy: bool = True,
        probes: Journal | None = None,
        callbacks: Sequence[Any] = (),
        waiting: Waiting | None = None,
    ):
        self.journal, self.ledger_file, self.progress, self.mirrors = journal, ledger_file, progress, mirrors
        self.plan, self.every, self.seconds, self.pixels = plan, every, seconds, pixels
        self.audited, self.accuracy, self.probes = audited, accuracy, probes
        self.callbacks, self.waiting = callbacks, waiting
        self.skipped = 0
        self.last = self.last_line = time.perf_counter()

    def resume_clock(self) -> None:
        """Begin timing anew, so that an evaluation or a save does not count as a slow step."""
        self.last = time.perf_counter()

    def step(self, r: Reading) -> str:
        """Write the step's ledger line, move the bar, and return its journal line (not yet written)."""
        seconds, self.last = r.ended - self.last, r.ended
        batch = self.plan.segment(r.step - 1).batch
        hash = r.hash if self.audited else None
        self.ledger_file.write(ledger.line(r.step, r.epoch, batch, hash, r.pixels if self.pixels else None))
        loss, top1 = r.loss / batch, 100.0 * r.correct / batch
        rate = batch / seconds if seconds > 0 else 0.0
        wait = min(1.0, r.wait / seconds) if seconds > 0 else 0.0
        if not (abs(r.loss) < float("inf") and abs(r.grad_norm) < float("inf")):
            self.skipped += 1
            self.progress.notice(
                f"step {r.step}: loss {loss:g}, gradient norm {r.grad_norm:g}: the update was skipped, "
                f"weights and optimizer are as before ({self.skipped} skipped so far)"
            )
        if self.waiting is not None and (told := self.waiting.step(seconds, r.wait)) is not None:
            self.progress.notice(f"step {r.step}: {told}")
        self.progress.update(step=r.step, epoch=r.epoch, loss=loss, accuracy=top1 if self.accuracy else None, wait=wait)
        right = f'"train/top1": {number(top1)}, ' if self.accuracy else ""
        dropped = "" if r.dropped is None else f', "train/dropped": {r.dropped:.4f}'
        return (
            f'{{"step": {r.step}, "epoch": {r.epoch}, "samples": {self.plan.seen(r.step)}, "wall": {time.time():.3f}, '
            f'"train/loss": {number(loss)}, {right}"train/lr": {number(r.lr)}, '
            f'"train/grad_norm": {number(r.grad_norm)}, "train/samples_per_s": {rate:.1f}, '
            f'"train/data_wait": {wait:.4f}{dropped}}}'
        )

    def write(self, step: int, line: str, evaluation: Mapping[str, float] | None = None) -> None:
        """Write a step's journal line, with its evaluation where it has one; others only at the recipe's cadence."""
        if evaluation:
            line = (
                line[:-1]
                + "".join(
                    f', "{name}": {value if isinstance(value, int) else number(value)}'
                    for name, value in evaluation.items()
                )
                + "}"
            )
        if evaluation or self.due(step):
            self.journal.write(line)
            for mirror in self.mirrors:
                mirror.log(step, line)
        if self.callbacks:
            self.tell(step, json.loads(line), evaluation)

    def tell(self, step: int, metrics: dict[str, Any], evaluation: Mapping[str, float] | None) -> None:
        """Tell the callbacks of a step, of the end of its epoch, and of its evaluation, in this order."""
        metrics = loose(metrics)
        ended = self.plan.place(step)[1] == 0
        for one in self.callbacks:
            for hook, when, values, due in (
                ("on_step_end", step, metrics, True),
                ("on_epoch_end", metrics.get("epoch", 0), metrics, ended),
                ("on_evaluate_end", step, evaluation, evaluation is not None),
            ):
                if due and hasattr(one, hook):
                    getattr(one, hook)(when, dict(values or {}))  # a copy: what is written to it reaches nobody

    def due(self, step: int) -> bool:
        if self.seconds is None:
            return self.every(step)
        now = time.perf_counter()
        if now - self.last_line < self.seconds:
            return False
        self.last_line = now
        return True

    def probed(self, step: int, joins: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> None:
        """Write what the probes read in a step."""
        assert self.probes is not None
        self.probes.write(probe_line(step, joins, values))

    @property
    def files(self) -> list[Journal]:
        return [file for file in (self.ledger_file, self.probes, self.journal) if file is not None]

    def sync(self) -> None:
        """Everything written so far is on the disk when this returns."""
        for file in self.files:
            file.sync()

    def close(self, keep_errors: bool = False) -> None:
        """Write what is left and stop. ``keep_errors``: another error is being told; do not replace it."""
        self.progress.close()
        for mirror in self.mirrors:
            mirror.close(exit_code=int(keep_errors))
        for file in self.files:
            with contextlib.suppress(*([WorldError] if keep_errors else [])):
                file.close()

    def durable(self, step: int, checkpoint: Path, best: bool) -> None:
        """A checkpoint of ``step`` was committed."""
        for mirror in self.mirrors:
            mirror.durable(step, checkpoint, best)
