"""Sending a run's journal to Weights & Biases after the fact (``restrain sync``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from restrain.errors import UserError, WorldError
from restrain.recipe import load
from restrain.run import journal, keeping
from restrain.run.folder import RunFolder
from restrain.run.lease import is_held
from restrain.run.mirrors import WandbMirror, new_run_id
from restrain.run.mirrors.wandb import has_credentials, wandb_options

PATIENCE = 24 * 3600.0  # seconds that an upload may take: somebody waits for it, and can stop it


@dataclass(frozen=True)
class Sent:
    """``steps``: how many were sent; ``last``: the last one that the server has now."""

    run_id: str
    project: str
    url: str | None
    steps: int
    last: int


def send(path: Path) -> Sent:
    """Send what the server lacks. Raises UserError for a folder that is no run or without an API key, WorldError where
    the server cannot be reached or refuses."""
    folder = RunFolder(path)
    if not folder.exists():
        raise UserError(f"{path} is not a run folder: it has no recipe.lock.yaml. restrain runs lists those there are.")
    if not has_credentials():
        raise UserError(
            "There is no API key for Weights & Biases. Set WANDB_API_KEY, or run `wandb login`, then sync again."
        )
    lines = vouched(folder)
    if not lines:
        raise UserError(f"{path} has nothing to send yet: no checkpoint vouches for any line of its journal.")
    run_id = _id(folder)
    options = replace(wandb_options(load(str(folder.lock_file)).recipe, path), mode="online", finish_timeout=0.0)
    failures: list[str] = []
    mirror = WandbMirror(path, run_id, options, warn=failures.append)
    for line in lines:
        mirror.log(int(line["step"]), line)
    mirror.close(PATIENCE)
    if failures:
        why = failures[0].partition("(")[2].rpartition(")")[0]
        raise WorldError(f"{path} could not be sent: {why}. The run is as it was; sync again once that is mended.")
    first = mirror.began_after
    return Sent(
        run_id, options.project or "?", mirror.url, sum(line["step"] > first for line in lines), mirror.last_sent
    )


def vouched(folder: RunFolder) -> list[dict]:
    """The journal's lines that can no longer change: all of a finished run, else those up to its newest checkpoint."""
    lines = journal.read(folder.journal)
    if folder.state == "finished":
        return lines
    newest = keeping.pointed(folder.checkpoints, "LATEST")
    step = int(newest.name.removeprefix("step-")) if newest is not None else -1
    return [line for line in lines if line["step"] <= step]


def _id(folder: RunFolder) -> str:
    """The run's id at wandb; one is made where it was never tracked."""
    run_id = folder.read_info().get("wandb_id")
    if run_id is None:
        if is_held(folder.path):
            raise UserError(
                f"{folder.path} is running without wandb (track.wandb.mode=disabled). Sync it once it ended."
            )
        run_id = new_run_id()
        folder.update_info({"wandb_id": run_id})
    return run_id
