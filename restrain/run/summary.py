"""A run folder in a few facts, for lists: read without torch, without locks, while the run goes on or after it died."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restrain.errors import RestrainError
from restrain.run import lockfile
from restrain.run.folder import RunFolder
from restrain.run.lease import is_held
from restrain.run.numbers import loose

TAIL = 1 << 16  # bytes at the end of a journal in which its last line is looked for
SKIPPED = ("checkpoints", "attempts", "wandb", "lease", "tensorboard")


@dataclass(frozen=True)
class Summary:
    """``state``: running, finished, interrupted, killed, failed, or unreadable; ``why``: the reason of the last two.

    ``step`` of ``total`` optimizer steps (0: not known). ``best``: ``{metric, value, step}``. ``metrics``: of the last
    evaluation. ``verdict``: as ``run.json`` keeps it (restrain.recipe.verdict).
    """

    path: Path
    recipe: str = "?"
    changes: tuple[str, ...] = ()
    state: str = "unreadable"
    why: str | None = None
    step: int = 0
    total: int = 0
    best: dict[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None
    started: str = ""
    tripwires: tuple[dict[str, Any], ...] = ()

    @property
    def told(self) -> str:
        """The state in words."""
        of = f"step {self.step:,} of {self.total:,}" if self.total else f"step {self.step:,}"
        if self.state == "finished":
            return f"finished, {self.step:,} steps"
        if self.state in ("failed", "unreadable"):
            return f"{self.state}: {self.why or 'the reason was not recorded'}"
        stopped = [wire for wire in self.tripwires if wire.get("act") == "stop"]
        if self.state == "interrupted" and stopped and stopped[-1].get("step") == self.step:
            return f"stopped by a tripwire at {of}: {stopped[-1]['metric']} was {stopped[-1]['value']:.4g}"
        return f"{self.state} at {of}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {name: getattr(self, name) for name in Summary.__dataclass_fields__} | {"path": str(self.path)}


def find_runs(top: Path) -> Iterator[Path]:
    """The run folders at and below ``top``, by name; folders inside of a run are not searched, links not followed."""
    if (top / "recipe.lock.yaml").exists() or (top / "run.json").exists():
        yield top
        return
    try:
        below = sorted(path for path in top.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return
    for path in below:
        if path.name not in SKIPPED and not path.name.startswith("."):
            yield from find_runs(path)


def summarise(path: Path) -> Summary:
    """The facts of one run folder; a broken one is told as such, never raised."""
    folder = RunFolder(path)
    try:
        info = folder.read_info()
        if not info:
            why = "it has no run.json" if folder.exists() else "it holds no run"
            return Summary(path, why=f"{why}; a start that failed early leaves it so")
        return _summary(folder, info)
    except (RestrainError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Summary(path, why=" ".join(str(error).split())[:200])


def _summary(folder: RunFolder, info: dict[str, Any]) -> Summary:
    last = last_line(folder.journal)
    step = max(int(info.get("step") or 0), int(last.get("step") or 0))
    state = info.get("state") or "interrupted"
    if state == "running" and not is_held(folder.path):
        state = "killed"
    return Summary(
        folder.path,
        recipe=str(info.get("recipe") or lockfile.identity(folder.read_lock() or "").get("recipe") or "?"),
        changes=tuple(info.get("changes") or ()),
        state=state,
        why=info.get("failed_because"),
        step=int(info.get("step") or 0) if state == "finished" else step,
        total=int(info.get("total") or 0),
        best=info.get("best"),
        metrics=dict(info.get("metrics") or {}),
        verdict=info.get("expect") if state == "finished" else None,
        started=str(info.get("started") or ""),
        tripwires=tuple(info.get("tripwires") or ()),
    )


def last_line(journal: Path) -> dict[str, Any]:
    """The last whole line of a journal; empty without one."""
    try:
        with journal.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    for raw in reversed(lines):
        try:
            entry = json.loads(raw)
        except ValueError:
            continue
        if isinstance(entry, dict):
            return loose(entry)
    return {}
