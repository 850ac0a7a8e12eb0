"""A window of steps under torch's profiler, written as a Chrome trace (chrome://tracing, ui.perfetto.dev)."""

from __future__ import annotations

import contextlib
import gzip
import os
from pathlib import Path
from typing import Any

from restrain.errors import WorldError


class Profile:
    """Profiles the steps ``at`` to ``at + steps - 1``, counted from 0, once.

    Args:
        at, steps: the window.
        folder: where the trace goes, the attempt's folder.
        rank: part of the file's name.

    Call :meth:`step` before each step and :meth:`close` at the end; outside the window both cost one comparison.
    """

    def __init__(self, at: int, steps: int, folder: Path, rank: int = 0):
        self.at, self.end = at, at + steps
        self.path = Path(folder) / f"trace-step{at}-rank{rank:04d}.json.gz"
        self._profiler: Any = None

    def step(self, step: int) -> Path | None:
        """Start or stop the profiler where the window begins or ends.

        Returns:
            The path of the trace when it was written just now.

        Raises:
            WorldError: the trace cannot be written.
        """
        if self._profiler is None:
            if step == self.at:
                self._start()
            return None
        return self.close() if step >= self.end else None

    def close(self) -> Path | None:
        """Stop and write, if the window is open: a run may end inside it."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return None
        profiler.stop()
        temporary = self.path.with_name(f".{self.path.stem}.tmp.json")  # torch zips by its own rules on the name
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(os.fspath(temporary))
            with gzip.open(self.path, "wb", compresslevel=3) as file:
                file.write(temporary.read_bytes())
        except (OSError, RuntimeError) as error:
            raise WorldError(
                f"Cannot write the profiler's trace {self.path}: {error}. Set profile=null to go on."
            ) from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return self.path

    def _start(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities, record_shapes=True)
        self._profiler.start()
