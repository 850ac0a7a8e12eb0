"""A progress bar for indexing, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from restrain.data.indexing import Reporter


@contextmanager
def console_reporter(doing: str = "indexing") -> Iterator[Reporter]:
    """A `Reporter` that prints what is done and shows a bar from the first progress on, where there is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(doing, BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=console, transient=True)
    task = bar.add_task(doing, visible=False)

    def progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total, visible=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    bar.disable = not console.is_terminal  # elsewhere it would leave an empty line
    with bar:
        yield Reporter(say, progress)
