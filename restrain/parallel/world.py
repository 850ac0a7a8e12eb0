"""Which process this is among how many, and how it was started. No torch: it is asked before torch is imported.

Ranks are started by Restrain itself (:mod:`restrain.parallel.launch`), by torchrun or by srun; Lightning's launcher is
never used, because it kills ranks that are still saving when another one has left.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from restrain.errors import WorldError


@dataclass(frozen=True)
class World:
    """One process among ``size``; ``local_size`` on this node. ``launcher``: single, restrain, torchrun or slurm.
    ``cores``: its share of the processors, counted before it was bound to some of them; 0: not counted."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    launcher: str = "single"
    cores: int = 0

    @property
    def nodes(self) -> int:
        return self.size // self.local_size

    def export(self, env: dict[str, str]) -> None:
        """Write the variables that torch and Lightning read (MASTER_ADDR and MASTER_PORT are set by the launcher)."""
        env["RANK"], env["WORLD_SIZE"] = str(self.rank), str(self.size)
        env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"] = str(self.local_rank), str(self.local_size)
        env["NODE_RANK"] = str(self.node)


def from_environment(env: Mapping[str, str] = os.environ) -> World:
    """The world that torchrun, srun or Restrain's own launcher has put this process into; otherwise one of one."""
    if "RESTRAIN_LAUNCHED" in env or "TORCHELASTIC_RUN_ID" in env:
        size = _int(env, "WORLD_SIZE", 1)
        local_size = _int(env, "LOCAL_WORLD_SIZE", 1, size)
        return World(
            rank=_int(env, "RANK", 0, size - 1),
            size=size,
            local_rank=_int(env, "LOCAL_RANK", 0, local_size - 1),
            local_size=local_size,
            node=_int(env, "NODE_RANK" if "NODE_RANK" in env else "GROUP_RANK", default=0),
            launcher="restrain" if "RESTRAIN_LAUNCHED" in env else "torchrun",
        )
    # SLURM_STEP_ID is there only under srun; a batch script itself, or a shell in an allocation, is not a rank.
    if "SLURM_STEP_ID" in env and (size := _int(env, "SLURM_NTASKS", 1, default=1)) > 1:
        nodes = _int(env, "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in env else "SLURM_NNODES", 1, default=1)
        local_rank = _int(env, "SLURM_LOCALID")
        if size % nodes or local_rank >= size // nodes:
            raise WorldError(
                f"srun started {size} tasks on {nodes} nodes, which is not the same number on each. "
                f"Ask for --ntasks-per-node instead of --ntasks."
            )
        return World(
            rank=_int(env, "SLURM_PROCID", 0, size - 1),
            size=size,
            local_rank=local_rank,
            local_size=size // nodes,
            node=_int(env, "SLURM_NODEID", 0, nodes - 1),
            launcher="slurm",
        )
    return World()


def rendezvous(world: World, env: dict[str, str]) -> None:
    """Set MASTER_ADDR and MASTER_PORT where the launcher has not: under srun, the step's first host.

    Raises WorldError for what is no host or port.
    """
    if world.launcher == "slurm":
        if "MASTER_ADDR" not in env:
            env["MASTER_ADDR"] = hosts(env)[0]
        if "MASTER_PORT" not in env:
            # Every rank must find the same one without talking: one per job step, outside the ephemeral range.
            job, step = _int(env, "SLURM_JOB_ID", default=0), _int(env, "SLURM_STEP_ID", default=0)
            env["MASTER_PORT"] = str(15000 + (job * 17 + step) % 15000)
    _int(env, "MASTER_PORT", 1, 65535)
    if not env.get("MASTER_ADDR"):
        raise WorldError(
            "MASTER_ADDR, the host where the ranks of this run are to meet, is not set. Start the run with restrain "
            "train, torchrun or srun, which set it."
        )


def hosts(env: Mapping[str, str]) -> list[str]:
    """The hosts of this step of a Slurm job, in the order of their nodes' numbers."""
    listed = env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", "127.0.0.1"))
    if not any(c in listed for c in "[,"):
        return [listed]
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, check=False)
    except OSError as error:
        raise WorldError(f"The node list {listed!r} of this job needs scontrol to be read: {error.strerror}.") from None
    if done.returncode:
        raise WorldError(f"scontrol could not expand the node list {listed!r}: {done.stderr.strip()}.")
    return done.stdout.split()


def cores_of(world: World, env: Mapping[str, str] = os.environ) -> int:
    """This process's share of the processors. Slurm binds each task to its own; elsewhere the node's are divided."""
    mine = len(os.sched_getaffinity(0))
    task = env.get("SLURM_CPUS_PER_TASK") or env.get("SRUN_CPUS_PER_TASK")
    if world.launcher == "slurm" and task is not None and task.isdecimal():
        return max(1, min(mine, int(task)))
    return max(1, mine // world.local_size)


def _int(env: Mapping[str, str], name: str, least: int = 0, most: int | None = None, default: int | None = None) -> int:
    """A variable of the launcher's, from ``least`` to ``most``; ``default`` where it is not there."""
    if name not in env and default is not None:
        return default
    try:
        value = int(env[name])
        if value >= least and (most is None or value <= most):
            return value
    except (KeyError, ValueError):
        pass
    wanted = f"of {least} or more" if most is None else f"from {least} to {most}"
    raise WorldError(
        f"The launcher of this process did not set {name} to a number {wanted} (it is {env.get(name)!r}). Start the "
        f"run with restrain train, torchrun or srun, and leave what they set."
    )
