"""The progress display: a bar on a terminal, a plain line every ten seconds elsewhere.

On a terminal the bar stands above two lines, which drop their last parts where it is narrow: what matters is first.

:meth:`Progress.update` stores numbers and returns; drawing happens in the bar's own thread, four times a second.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from restrain.insight.throughput import Throughput

PLAIN_EVERY = 10.0  # seconds
REFRESH = 4  # a second
WINDOW = 30.0  # seconds over which the speed is measured
SETTLED = 5.0  # seconds after which a speed says something


@dataclass
class _Now:
    """What is shown."""

    step: int
    epoch: int = 0
    loss: float | None = None
    accuracy: float | None = None
    wait: float | None = None
    phase: str = ""


@dataclass(frozen=True)
class Length:
    """``steps`` of a run, of which ``start`` are done; ``epochs`` to be shown; ``epoch`` steps each; ``batch`` images
    (or what ``unit`` says) a step."""

    steps: int
    start: int = 0
    epochs: float | None = None
    epoch: int | None = None
    batch: int = 1
    unit: str = "images"


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def fitted(parts: list[str], width: int) -> str:
    """As many of the parts, from the first, as a line of that width holds."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if len(longer) > width:
            break
        line = longer
    return line


class Progress:
    """Progress of one run; silent on ranks other than 0.

    Args:
        length: of the run.
        rank: this process's.
        throughput: FLOP/s and memory, shown from some seconds on.
        console: where to draw; None: standard error.
        plain: lines instead of a bar; None: when the console is no terminal.
    """

    def __init__(
        self,
        length: Length,
        rank: int = 0,
        throughput: Throughput | None = None,
        console: Console | None = None,
        plain: bool | None = None,
    ):
        self.length, self.throughput, self.quiet = length, throughput, rank != 0
        self._console = console or Console(file=sys.stderr)
        self._plain = not self._console.is_terminal if plain is None else plain
        self._now = _Now(length.start)
        self._evaluation, self._best = "", ""
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), length.start)])
        self._begin = time.monotonic()
        self._due = time.monotonic() + PLAIN_EVERY
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if not self.quiet and not self._plain:
            # stdout and stderr stay as they are: a library that replaces them would be surprised, and so would we
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=REFRESH,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Draw a last time and stop; harmless when repeated."""
        if self.throughput is not None:
            self.throughput.close()
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
        elif self._plain and not self.quiet and self._due != float("inf"):
            self._print_line()
        self._due = float("inf")

    def update(
        self, step: int, epoch: int, loss: float | None, accuracy: float | None = None, wait: float | None = None
    ) -> None:
        """Say where training is; a few microseconds.

        Args:
            step: optimizer steps done.
            epoch: of that step, counted from 0.
            loss: of that step.
            accuracy: of that step, percent.
            wait: share of the time spent waiting for data, 0 to 1.
        """
        if self.quiet:
            return
        self._now = _Now(step, epoch, loss, accuracy, wait)
        if self._plain and time.monotonic() >= self._due:
            self._print_line()

    def evaluating(self, done: int, total: int) -> None:
        """Say how far an evaluation is, in samples."""
        if self.quiet:
            return
        now = self._now
        self._now = _Now(now.step, now.epoch, now.loss, now.accuracy, now.wait, f"evaluating {done}/{total}")
        if self._plain and time.monotonic() >= self._due:
            self._print_line()

    def evaluated(self, text: str, last: str = "", best: str = "") -> None:
        """Say the result of an evaluation, and show it from now on: ``last`` (default: the text), and the ``best``."""
        self._evaluation, self._best = last or text, best
        now = self._now
        self._now = _Now(now.step, now.epoch, now.loss, now.accuracy, now.wait)
        self.notice(f"step {self._now.step}: {text}")

    def notice(self, text: str) -> None:
        """Print a line above the bar. From any thread."""
        if not self.quiet:
            self._console.print(Text(text), soft_wrap=True)

    # ---------------------------------------------------------------------------------------------------- drawing

    def speed(self) -> float:
        """Steps a second over the last half minute; 0 before there is any."""
        now, step = time.monotonic(), self._now.step
        if step != self._samples[-1][1] or now - self._samples[-1][0] > 1.0:
            self._samples.append((now, step))
        while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW:
            self._samples.popleft()
        (before, first), (after, last) = self._samples[0], self._samples[-1]
        return max(0.0, (last - first) / (after - before)) if after > before else 0.0

    def line(self) -> str:
        """The state as one line of text."""
        return "  ".join([*self._training(), *self._rest()])

    def _training(self) -> list[str]:
        """Where training is, what matters most first."""
        now, length, speed = self._now, self.length, self.speed()
        whole = (
            f"/{math.ceil(length.epochs - 1e-9)}" if length.epochs is not None else ""
        )  # 4.5: the fifth is cut short
        parts = [f"epoch {now.epoch + 1}{whole}", f"step {now.step}/{length.steps}"]
        if now.phase:
            parts.append(now.phase)
        if now.loss is not None:
            parts.append(f"loss {now.loss:.4g}")
        if now.accuracy is not None:
            parts.append(f"top-1 {now.accuracy:.1f} %")
        if speed > 0:
            parts.append(f"{speed * length.batch:.0f} {length.unit}/s")
        if now.wait is not None:
            parts.append(f"data wait {100 * now.wait:.0f} %")
        if speed > 0 and now.step < length.steps:
            parts.append(f"{duration((length.steps - now.step) / speed)} left")
            if length.epoch is not None and (length.epochs or 0) > 1:
                parts.append(f"{duration((length.epoch - now.step % length.epoch) / speed)} of the epoch")
        return parts

    def _rest(self) -> list[str]:
        """Results, and what the device does."""
        parts = [f"last evaluation {self._evaluation}"] if self._evaluation else []
        if self._best:
            parts.append(f"best {self._best}")
        if self.throughput is not None and time.monotonic() - self._begin > SETTLED:
            parts += [self.throughput.told(self.speed() * self.length.batch), self.throughput.memory()]
        return [part for part in parts if part]

    def _render(self) -> Group:
        grid = Table.grid(expand=True)
        grid.add_row(ProgressBar(total=max(self.length.steps, 1), completed=self._now.step))
        width = self._console.width
        lines = [fitted(self._training(), width), fitted(self._rest(), width)]
        return Group(grid, *(Text(line, no_wrap=True, overflow="crop") for line in lines if line))

    def _print_line(self) -> None:
        self._due = time.monotonic() + PLAIN_EVERY
        self._console.print(Text(self.line()), soft_wrap=True)
