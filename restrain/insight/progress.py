"""The progress display: a bar on a terminal, a plain line every ten seconds elsewhere.

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

PLAIN_EVERY = 10.0  # seconds
REFRESH = 4  # a second
WINDOW = 30.0  # seconds over which the speed is measured


@dataclass
class _Now:
    """What is shown."""

    step: int
    epoch: int = 0
    loss: float | None = None
    accuracy: float | None = None
    wait: float | None = None
    phase: str = ""


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Progress of one run; silent on ranks other than 0.

    Args:
        steps: optimizer steps of the whole run.
        start: steps done already.
        epochs: epochs of the whole run, to be shown.
        batch: images a step, for images a second.
        rank: this process's.
        console: where to draw; None: standard error.
        plain: lines instead of a bar; None: when the console is no terminal.
    """

    def __init__(
        self,
        steps: int,
        start: int = 0,
        epochs: float | None = None,
        batch: int = 1,
        rank: int = 0,
        console: Console | None = None,
        plain: bool | None = None,
    ):
        self.steps, self.epochs, self.batch, self.quiet = steps, epochs, batch, rank != 0
        self._console = console or Console(file=sys.stderr)
        self._plain = not self._console.is_terminal if plain is None else plain
        self._now = _Now(start)
        self._evaluation: str | None = None
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), start)])
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
        """Say how far an evaluation is, in images."""
        if self.quiet:
            return
        now = self._now
        self._now = _Now(now.step, now.epoch, now.loss, now.accuracy, now.wait, f"evaluating {done}/{total}")
        if self._plain and time.monotonic() >= self._due:
            self._print_line()

    def evaluated(self, text: str) -> None:
        """Show the result of the last evaluation, such as ``98.9 % top-1``, from now on."""
        self._evaluation = text
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
        now, speed = self._now, self.speed()
        whole = f"/{math.ceil(self.epochs - 1e-9)}" if self.epochs is not None else ""  # 4.5: the fifth is cut short
        parts = [f"epoch {now.epoch + 1}{whole}", f"step {now.step}/{self.steps}"]
        if now.phase:
            parts.append(now.phase)
        if now.loss is not None:
            parts.append(f"loss {now.loss:.4g}")
        if now.accuracy is not None:
            parts.append(f"top-1 {now.accuracy:.1f} %")
        if speed > 0:
            parts.append(f"{speed * self.batch:.0f} images/s")
        if now.wait is not None:
            parts.append(f"data wait {100 * now.wait:.0f} %")
        if speed > 0 and now.step < self.steps:
            parts.append(f"{duration((self.steps - now.step) / speed)} left")
        if self._evaluation is not None:
            parts.append(f"last evaluation {self._evaluation}")
        return "  ".join(parts)

    def _render(self) -> Group:
        grid = Table.grid(expand=True)
        grid.add_row(ProgressBar(total=max(self.steps, 1), completed=self._now.step))
        return Group(grid, Text(self.line(), overflow="ellipsis", no_wrap=False))

    def _print_line(self) -> None:
        self._due = time.monotonic() + PLAIN_EVERY
        self._console.print(Text(self.line()), soft_wrap=True)
