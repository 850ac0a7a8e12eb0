"""From a resolved recipe to the ranks that train it: the folder, how many processes, and who starts them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from restrain.errors import UserError
from restrain.parallel import environment, launch
from restrain.parallel.world import World, cores_of, from_environment
from restrain.recipe import Recipe, Resolved, to_yaml

if TYPE_CHECKING:
    from restrain.training.fit import Result
    from restrain.training.own import Own

PER_NODE = {"torchrun": ("torchrun", "--nproc-per-node"), "slurm": ("srun", "--ntasks-per-node")}
"""Who starts processes that are not ours, and its option for their number on a node."""


@dataclass(frozen=True)
class Started:
    """How it ended. ``result``: of this process's own part; None where it only watched over the processes that it
    started, of which ``exit_code`` is that of the whole."""

    folder: Path
    world: World
    exit_code: int
    result: Result | None


def start(
    resolved: Resolved,
    command: Sequence[str],
    *,
    run: Path | None = None,
    allow: Sequence[str] = (),
    fork: str | None = None,
    own: Own | None = None,
) -> Started:
    """Train in this process, or in as many as the recipe asks for, each of which runs ``command``.

    ``run``: the folder, or None for one named after the recipe and the time; it is then added to ``command``.
    ``fork``: ``RUN[@STEP]`` to branch off from.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are stack traces; what they mean we say
    here = from_environment()
    if here.launcher == "restrain":
        launch.die_with_parent()
    folder = run or _default_folder(resolved, here)
    size = processes(resolved.recipe, here)
    check_size(resolved.recipe, here, size)
    if size > here.size:
        if not command:
            raise UserError(
                f"The recipe asks for {size} processes, and a notebook is one. Set parallel.devices=1, or use a script."
            )
        code = launch.supervise(command if run else [*command, "--run", str(folder)], size)
        return Started(folder, here, code, None)

    here = replace(here, cores=cores_of(here))
    around = environment.prepare(here, resolved.site, here.cores)
    from restrain.training.fit import fit

    result = fit(resolved, folder, here, allow=allow, fork=fork, own=own, around=around)
    return Started(folder, here, result.exit_code, result)


def processes(recipe: Recipe, here: World) -> int:
    """How many processes the run has: those that there are, or those that are to be started.

    Raises UserError where the recipe names another number than torchrun or srun has started on this node.
    """
    if here.launcher == "single":
        return local_ranks(recipe)
    devices = recipe.parallel.devices
    if here.launcher in PER_NODE and devices not in ("auto", here.local_size):
        launcher, option = PER_NODE[here.launcher]
        raise UserError(
            f"parallel.devices={devices}, but {launcher} has started {here.local_size} process(es) on this node. Start "
            f"as many ({option}={devices}), or set parallel.devices=auto."
        )
    return here.size


def _default_folder(resolved: Resolved, here: World) -> Path:
    """``runs/RECIPE/DATE-TIME-HASH``; under Slurm ``runs/RECIPE/JOB[_TASK]``, so that a requeued job finds its run."""
    base = Path("runs") / resolved.name
    if job := os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID"):
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        return base / (f"{job}_{task}" if task else job)
    if here.launcher == "torchrun":
        raise UserError(
            "Under torchrun, name the run folder with --run DIR: ranks cannot agree on one made from the time. A -- in "
            "front of the command keeps torchrun from taking --run for an option of its own: torchrun ... -m restrain "
            "-- train RECIPE --run DIR."
        )
    digest = hashlib.sha256(to_yaml(resolved.recipe).encode()).hexdigest()[:6]
    return base / f"{datetime.now():%Y%m%d-%H%M%S}-{digest}"


def local_ranks(recipe: Recipe) -> int:
    """How many processes this command starts here: ``parallel.devices``, or one a GPU, or one."""
    devices = recipe.parallel.devices
    if recipe.parallel.strategy == "single":
        return 1
    if devices != "auto":
        return devices
    if recipe.parallel.accelerator == "cpu" or not any(Path("/dev").glob("nvidia[0-9]*")):
        return 1
    import torch

    from restrain.data.order import allowed_worlds

    count = torch.cuda.device_count()
    tensor, worlds = recipe.parallel.tensor, allowed_worlds(recipe.batch.global_, recipe.batch.group)
    return max([n * tensor for n in worlds if n * tensor <= count], default=1)


def check_size(recipe: Recipe, here: World, size: int) -> None:
    """Raises UserError where ``size`` processes cannot share the recipe's steps, or cannot be started from here."""
    from restrain.parallel.layout import layout_of
    from restrain.training import spans

    nodes = recipe.parallel.nodes
    if here.launcher == "single" and nodes not in ("auto", 1):
        raise UserError(
            f"parallel.nodes={nodes}, but this command was started on one node. Start it on all nodes with srun "
            f"(slurm/ has scripts) or torchrun."
        )
    ranks = World(size=size, local_size=here.local_size if here.launcher != "single" else size)
    spans.check(recipe, layout_of(recipe.parallel, ranks).data)
