"""The mirror as TensorBoard event files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from restrain.errors import UserError
from restrain.run.mirrors.base import Mirror

WALL = "wall"


def refuse_without_package() -> None:
    """Raises UserError where TensorBoard is not installed: before a run begins, not in its thread."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "track.tensorboard=true: the package tensorboard is not installed. Install it (pip install "
            "'restrain[tensorboard]'), or set track.tensorboard=false."
        )


class TensorBoardMirror(Mirror):
    """Scalars in ``tensorboard/`` of the run folder, one event file a start; ``tensorboard --logdir`` reads them."""

    def __init__(self, folder: Path, *, backlog: Path | None = None, warn: Callable[[str], None] | None = None):
        self.folder = Path(folder) / "tensorboard"
        self.writer: Any = None
        super().__init__("TensorBoard", backlog, hold=True, warn=warn)

    def opened(self) -> int:
        from torch.utils.tensorboard.writer import SummaryWriter

        before = last_step(self.folder)
        self.writer = SummaryWriter(str(self.folder))
        return before

    def send(self, step: int, metrics: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        # All scalars of a step in one event: a kill leaves a step whole or absent.
        scalars = {name: value for name, value in metrics.items() if isinstance(value, int | float) and name != WALL}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()])
        self.writer.file_writer.add_summary(summary, step, metrics.get(WALL))
        if self._waiting.empty():
            self.writer.flush()

    def finish(self, exit_code: int) -> None:
        self.writer.close()


def events(folder: Path) -> list[tuple[int, str, float]]:
    """(step, metric, value) of every scalar that the files of a folder hold whole, in their order."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        with contextlib.suppress(Exception):  # a file that a kill cut off ends where it ends
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    found.append((event.step, value.tag, float(tensor_util.make_ndarray(value.tensor))))
    return found


def last_step(folder: Path) -> int:
    """The last step that the files hold, -1 for none."""
    found = events(folder) if folder.is_dir() else []
    return max((step for step, _, _ in found), default=-1)
