"""Checkpoints: written by every rank from a thread, committed by one rename, whole or absent at every instant.

A save, in order::

    all ranks   snapshot at the step border; training goes on
                write step-N.tmp-A/{model,optim}-RRRR.safetensors (fsync, SHA-256), then done-RRRR.json
    rank 0      wait for all done files, merge them into manifest.json, fsync
                set an older step-N aside, rename step-N.tmp-A to step-N, fsync the folder       <- committed
                BEST (if it is), LATEST, prune

A is the attempt, so what a killed process left is never mistaken for one's own. The threads talk through files alone:
a collective from a second thread would interleave with the training's. What a kill leaves half done is put right by
:func:`restrain.run.keeping.clean` at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from restrain.errors import WorldError
from restrain.run.files import sync_folder, world_error, write_all, write_atomic
from restrain.run.keeping import clean, point, pointed, prune, remove
from restrain.run.manifest import FORMAT, MANIFEST, Found, encode_manifest, file_name, newest
from restrain.run.reader import Reader
from restrain.run.slices import DTYPES, Slice, Snapshot, share, write_file

__all__ = ["Found", "Reader", "Slice", "Writer", "clean", "newest", "point", "pointed", "share"]

POLL = 0.02, 0.5  # seconds between looks for the other ranks' done files: at first, and at most


@dataclass
class _Job:
    """One save of one rank, as its thread sees it."""

    step: int
    number: int  # of the writer's saves: tells a done file from one of an earlier, failed save of the same step
    tensors: dict[str, torch.Tensor]  # by their keys in the files
    slices: dict[str, list[tuple[str, tuple[int, ...], tuple[int, ...]]]]  # name -> key, global shape, offset of each
    scalars: str
    best: bool
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Writer:
    """Saves a run's checkpoints from one rank; all ranks call :meth:`save` for the same steps in the same order.

    Args:
        folder: ``checkpoints/`` of the run, the same for all ranks.
        rank, world: of this process, of how many.
        attempt: the run folder's attempt number, the same for all ranks.
        keep: how many of the newest checkpoints stay (BEST and those being read besides); None keeps all.
        placement: what else the manifest should say of where it was made (micro-batch, threads, device, versions).
        before_commit: called on rank 0's writer thread right before the rename: sync the journals, check the lease.
        deadline: seconds that rank 0 waits for the other ranks' files.

    The threads are daemons: call :meth:`wait` before the process ends, or the save in flight is lost.
    """

    def __init__(
        self,
        folder: Path | str,
        rank: int,
        world: int,
        attempt: int,
        keep: int | None = 2,
        placement: Mapping[str, Any] | None = None,
        before_commit: Callable[[], None] | None = None,
        deadline: float = 1800.0,
    ):
        if keep is not None and keep < 1:
            raise ValueError("keep must be at least 1, or None for all")
        self.folder, self.rank, self.world, self.attempt, self.keep = Path(folder), rank, world, attempt, keep
        self.placement = dict(placement or {})
        self.committed: int | None = None  # rank 0: the last step that was committed; others: handed over
        self._before_commit, self._deadline = before_commit, deadline
        self._snapshot, self._number = Snapshot(), 0
        self._job: _Job | None = None

    @property
    def busy(self) -> bool:
        """Whether a save is in flight."""
        return self._job is not None and not self._job.done.is_set()

    def save(
        self,
        step: int,
        slices: Mapping[str, Slice | Sequence[Slice]],
        scalars: Mapping[str, Any],
        best: bool = False,
    ) -> None:
        """Snapshot now, write in a thread. Waits first for a save that is still in flight.

        Args:
            step: optimizer steps done.
            slices: ``name|kind`` -> this rank's part, or parts where they do not lie together. Of a tensor that
                ranks hold alike, one rank gives it
                (:func:`share`), or several do.
            scalars: JSON values, the same on all ranks; rank 0's are kept.
            best: this checkpoint becomes BEST.

        Raises:
            WorldError: the save before failed (this one is not begun then).
        """
        self.wait()
        self._number += 1
        parts = {name: [part] if isinstance(part, Slice) else list(part) for name, part in slices.items()}
        keys = {name: [f"{name}#{n}" if n else name for n in range(len(of))] for name, of in parts.items()}
        live = {key: part.tensor for name, of in parts.items() for key, part in zip(keys[name], of, strict=True)}
        job = _Job(
            step=step,
            number=self._number,
            tensors=self._snapshot.take(live),
            slices={
                name: [(key, *part.placed()) for key, part in zip(keys[name], of, strict=True)]
                for name, of in parts.items()
            },
            scalars=json.dumps(dict(scalars)),
            best=best,
        )
        self._job = job
        threading.Thread(target=self._run, args=(job,), name=f"checkpoint {step}", daemon=True).start()

    def poll(self) -> None:
        """Raise the failure of the last save, once; otherwise return at once.

        Raises:
            WorldError: it failed. Older checkpoints are intact and what it had written is gone.
        """
        job = self._job
        if job is not None and job.done.is_set():
            self._job = None
            if job.error is not None:
                raise job.error

    def wait(self, timeout: float | None = None) -> None:
        """Wait until no save is in flight, then :meth:`poll`.

        Raises:
            WorldError: the save failed, or ``timeout`` seconds were not enough (it goes on).
        """
        if self._job is not None and not self._job.done.wait(timeout):
            raise WorldError(f"The checkpoint of step {self._job.step} is not written after {timeout:.0f} s.")
        self.poll()

    # ------------------------------------------------------------------------------------- in the writer's thread

    def _run(self, job: _Job) -> None:
        temporary = self.folder / f"step-{job.step}.tmp-{self.attempt}"
        try:
            try:
                self._write(job, temporary)
                if self.rank == 0:
                    self._commit(job, temporary)
                self.committed = job.step
            except OSError as error:
                if self.rank and isinstance(error, FileNotFoundError) and not temporary.exists():
                    raise WorldError(
                        f"Rank {self.rank} has not saved its part of the checkpoint of step {job.step}: rank 0 gave it "
                        f"up meanwhile, whose own message says why. The older checkpoints are intact."
                    ) from None
                then = "then go on with `restrain resume`; the older checkpoints are intact"
                raise world_error(f"save the checkpoint of step {job.step}", temporary, error, then) from None
        except Exception as error:
            job.error = error
            self._give_up(job, temporary)
        finally:
            job.tensors = {}
            job.done.set()

    def _write(self, job: _Job, temporary: Path) -> None:
        temporary.mkdir(parents=True, exist_ok=True)
        done = temporary / f"done-{self.rank:04d}.json"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(done)
        self._snapshot.ready()
        files: dict[str, dict[str, torch.Tensor]] = {}
        for name, parts in job.slices.items():
            file = files.setdefault(file_name(name, self.rank), {})
            file.update({key: job.tensors[key] for key, *_ in parts})
        facts = {name: write_file(temporary / name, tensors) for name, tensors in sorted(files.items())}
        tensors = {
            name: {
                "dtype": DTYPES[job.tensors[name].dtype],
                "shape": parts[0][1],
                "slices": [
                    [file_name(name, self.rank), offset, list(job.tensors[key].shape)] for key, _, offset in parts
                ],
            }
            for name, parts in job.slices.items()
        }
        write_atomic(done, json.dumps({"save": job.number, "files": facts, "tensors": tensors}))

    def _commit(self, job: _Job, temporary: Path) -> None:
        body: dict[str, Any] = {"format": FORMAT, "step": job.step, "attempt": self.attempt, "world": self.world}
        body |= {"best": job.best, "placement": self.placement, "scalars": json.loads(job.scalars)}
        body |= merge(self._collect(job, temporary))
        fd = os.open(temporary / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(fd, encode_manifest(body))
            os.fsync(fd)
        finally:
            os.close(fd)
        for path in [*temporary.glob("done-*.json"), *temporary.glob("failed-*.txt")]:
            os.unlink(path)
        sync_folder(temporary)
        if self._before_commit is not None:
            self._before_commit()
        final = self.folder / f"step-{job.step}"
        aside = self.folder / f"step-{job.step}.old-{self.attempt}"
        if final.exists():  # saved before a crash; newest() finds it under this name too
            remove(aside)
            os.rename(final, aside)
        try:
            os.rename(temporary, final)
        except OSError:
            if aside.exists():
                os.rename(aside, final)
            raise
        sync_folder(self.folder)
        if job.best:
            point(self.folder, "BEST", job.step)
        point(self.folder, "LATEST", job.step)
        remove(aside)
        prune(self.folder, self.keep, job.step)

    def _collect(self, job: _Job, temporary: Path) -> list[dict[str, Any]]:
        """All ranks' done files, waited for.

        The folder is listed once a look, and only what is there is opened: asking a shared file system for the file of
        each of a thousand ranks, fifty times a second, would slow down the very writes that are waited for.
        """
        parts: dict[int, dict[str, Any]] = {}
        missing = {f"done-{rank:04d}.json": rank for rank in range(self.world)}
        pause, longest = POLL
        end = time.monotonic() + self._deadline
        while True:
            there = os.listdir(temporary)
            for name in missing.keys() & set(there):
                if part := _done(temporary / name, job.number):
                    parts[missing.pop(name)] = part
            if not missing:
                return [parts[rank] for rank in range(self.world)]
            for name in sorted(there):
                if name.startswith("failed-"):
                    raise WorldError((temporary / name).read_text())
            if time.monotonic() > end:
                raise WorldError(
                    f"Cannot save the checkpoint of step {job.step}: after {self._deadline:.0f} s the files of rank "
                    f"{', '.join(map(str, missing.values()))} are not in {temporary}. Is the run folder on a file "
                    "system that all nodes share, and does that rank still run? The older checkpoints are intact."
                )
            time.sleep(pause)
            pause = min(1.5 * pause, longest)

    def _give_up(self, job: _Job, temporary: Path) -> None:
        """Rank 0 removes the unfinished folder; another rank tells rank 0 why it will not be finished."""
        with contextlib.suppress(OSError):
            if self.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                for path in temporary.glob(f"*-{self.rank:04d}.safetensors"):
                    os.unlink(path)
                (temporary / f"failed-{self.rank:04d}.txt").write_text(f"{job.error} (reported by rank {self.rank})")


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The ``files`` and ``tensors`` of the manifest from those of the ranks.

    Raises:
        ValueError: ranks disagree on a tensor's dtype or global shape.
    """
    files: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for part in parts:
        files |= part["files"]
        for name, entry in part["tensors"].items():
            known = tensors.setdefault(name, {"dtype": entry["dtype"], "shape": entry["shape"], "slices": []})
            if (known["dtype"], known["shape"]) != (entry["dtype"], entry["shape"]):
                raise ValueError(f"ranks disagree on {name}: {known['dtype']} {known['shape']} against {entry}")
            known["slices"] += entry["slices"]
    return {"files": files, "tensors": tensors}


def _done(path: Path, number: int) -> dict[str, Any] | None:
    try:
        part = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return part if part["save"] == number else None
