"""The run folder: one folder holds everything a run is, and any process may read it while it grows.

::

    recipe.lock.yaml   what defines the run            run.json      state, versions, hardware, attempts
    metrics.jsonl      the journal                     ledger.jsonl  one hash a step of what was trained on
    probes.jsonl       what the probes read at every join, where the recipe has any
    mistakes.json      the surest wrong predictions of the last evaluation
    checkpoints/       step-N/, LATEST, BEST           attempts/N/   what belongs to one start of the run
    wandb/             the mirror's files              lease/        who is writing (restrain.run.lease)
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from restrain.errors import UserError, WorldError
from restrain.run.files import remove_temporaries, sync_folder, world_error, write_atomic
from restrain.run.numbers import loose, strict

STATES = ("running", "finished", "interrupted", "failed")


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with the keys of ``new`` over it; mappings merge, anything else replaces."""
    result = dict(old)
    for key, value in new.items():
        before = result.get(key)
        result[key] = merged(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return result


class RunFolder:
    """Paths, lock, ``run.json`` and attempts of one run. Every rank may hold one; only rank 0 writes.

    ``attempt`` is 1 for the first start of the run and one more at each further start; None until
    :meth:`begin_attempt` (rank 0) or :meth:`join_attempt` (the other ranks, told the number by rank 0).
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.lock_file = self.path / "recipe.lock.yaml"
        self.info_file = self.path / "run.json"
        self.journal = self.path / "metrics.jsonl"
        self.ledger = self.path / "ledger.jsonl"
        self.probes = self.path / "probes.jsonl"
        self.mistakes = self.path / "mistakes.json"
        self.checkpoints = self.path / "checkpoints"
        self.attempts = self.path / "attempts"
        self.wandb = self.path / "wandb"
        self.attempt: int | None = None
        self._writing = threading.Lock()

    def exists(self) -> bool:
        """Whether a run lives here: its lock is the first file that is written."""
        return self.lock_file.is_file()

    def create(self) -> None:
        """Make the folder and its inner folders; harmless when they are there.

        Raises:
            UserError: the path is a file, or a folder with other things in it and no run.
            WorldError: the disk or the permissions do not allow it.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"The run folder {self.path} is a file. Name another folder with --run.")
            if self.path.is_dir() and not self.exists():
                foreign = sorted(
                    p.name
                    for p in self.path.iterdir()
                    if p.name not in OWN and not p.name.endswith(".tmp") and not p.name.startswith("bad_samples")
                )
                if foreign:
                    raise UserError(
                        f"The folder {self.path} holds no run but other things ({', '.join(foreign[:3])}). "
                        "Name an empty or a new folder with --run."
                    )
            for folder in (self.path, self.checkpoints, self.attempts):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise world_error("make the run folder", self.path, error) from None

    def read_lock(self) -> str | None:
        """The text of ``recipe.lock.yaml``, or None before there is one."""
        try:
            return self.lock_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise WorldError(f"Cannot read the run's lock {self.lock_file}: {error}.") from None

    def write_lock(self, text: str) -> None:
        """Write ``recipe.lock.yaml``; atomic and durable."""
        self._write(self.lock_file, text)

    def read_info(self) -> dict[str, Any]:
        """The content of ``run.json``; empty before there is one.

        Raises:
            WorldError: it is not JSON (someone edited it, or the disk is at fault).
        """
        try:
            content = json.loads(self.info_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise WorldError(
                f"Cannot read {self.info_file}: {error}. It is written whole or not at all, so it was edited or the "
                "disk is at fault. Repair it, or move it away: the run goes on without it."
            ) from None
        wrong = "no JSON object" if not isinstance(content, dict) else _wrong(content)
        if wrong:
            raise WorldError(
                f"{self.info_file} was edited: it holds {wrong}. Repair it, or move it away: the run goes on without "
                "it."
            )
        return loose(content)

    @property
    def stopped_at(self) -> int:
        """The step after which the run last left in good order, 0 before it did."""
        return self.read_info().get("step", 0)

    @property
    def interventions(self) -> list[dict[str, Any]]:
        """Those that were recorded at a start of the run, checkpointed or not."""
        return self.read_info().get("interventions", [])

    def update_info(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Merge ``values`` into ``run.json`` (inner mappings merge too); atomic. Returns the new content."""
        with self._writing:
            content = merged(self.read_info(), values)
            self._write(self.info_file, json.dumps(strict(content), indent=2, ensure_ascii=False) + "\n")
        return content

    @property
    def state(self) -> str | None:
        """``running``, ``finished``, ``interrupted`` or ``failed``; None before the first start.

        A killed run still says ``running``: the lease tells whether it does.
        """
        return self.read_info().get("state")

    def set_state(self, state: str) -> None:
        """Record the run's state in ``run.json``."""
        if state not in STATES:
            raise ValueError(f"state {state!r} is none of {STATES}")
        self.update_info({"state": state})

    def write_mistakes(self, step: int, mistakes: list[dict[str, Any]]) -> None:
        """Keep the surest wrong predictions of the evaluation after ``step``; atomic."""
        self._write(self.mistakes, json.dumps({"step": step, "mistakes": mistakes}, indent=1) + "\n")

    def begin_attempt(self) -> int:
        """Number a new start of the run and make ``attempts/N/``. For rank 0, under the lease."""
        try:
            self.attempts.mkdir(parents=True, exist_ok=True)
            remove_temporaries(self.path)
            number = 1 + max((int(p.name) for p in self.attempts.iterdir() if p.name.isdecimal()), default=0)
            (self.attempts / str(number)).mkdir()
            sync_folder(self.attempts)
        except OSError as error:
            raise world_error("begin an attempt in the run folder", self.attempts, error) from None
        self.attempt = number
        return number

    def join_attempt(self, number: int) -> None:
        """Take the attempt number that rank 0 has drawn."""
        self.attempt = number

    @property
    def attempt_dir(self) -> Path:
        """``attempts/N/`` of this start."""
        if self.attempt is None:
            raise RuntimeError("no attempt yet: call begin_attempt (rank 0) or join_attempt first")
        return self.attempts / str(self.attempt)

    def _write(self, path: Path, text: str) -> None:
        try:
            write_atomic(path, text)
        except OSError as error:
            raise world_error(
                f"write the run's {path.name}", path, error, f"then start again; {os.fspath(path)} is unchanged"
            ) from None


def _wrong(info: Mapping[str, Any]) -> str | None:
    """What is wrong with the entries of ``run.json`` that decide something."""
    for key, kind in (("step", int), ("interventions", list), ("metrics", dict), ("state", str)):
        if key in info and not isinstance(info[key], kind):
            return f"{json.dumps(info[key])} as {key!r}"
    if "state" in info and info["state"] not in STATES:
        return f"{json.dumps(info['state'])} as 'state', which is one of {', '.join(STATES)}"
    return None


OWN = (
    "recipe.lock.yaml",
    "run.json",
    "metrics.jsonl",
    "ledger.jsonl",
    "probes.jsonl",
    "mistakes.json",
    "checkpoints",
    "attempts",
    "wandb",
    "tensorboard",
    "lease",
)
