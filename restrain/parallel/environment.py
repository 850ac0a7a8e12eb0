"""The environment of a rank: what Restrain sets where nobody has, and what was there, for ``run.json``. No torch here.

What a user has set always stands, also under an older name of the same variable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restrain.errors import WorldError
from restrain.parallel.world import World
from restrain.recipe.site import Site

COLLECTIVE_TIMEOUT = 600.0
"""Seconds that a rank waits in a collective before the run ends."""

ALIASES = {
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "TORCH_FR_DUMP_ON_TIMEOUT",
    "TORCH_FR_DUMP_TEMP_FILE": "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "NCCL_ASYNC_ERROR_HANDLING",
}
TOLD = ("NCCL_", "GLOO_", "TORCH_NCCL_", "TORCH_FR_", "TORCH_DIST_", "OMP_", "MKL_NUM_", "OPENBLAS_NUM_", "KMP_")
ALSO_TOLD = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "MASTER_ADDR", "MASTER_PORT", "PYTORCH_ALLOC_CONF")


@dataclass
class Surroundings:
    """``set``: variables that Restrain has set; ``kept``: those that were there; ``cpus``: the processors that this
    rank was bound to, None where it was not."""

    set: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    cpus: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"set": self.set, "kept": self.kept, "cpus": self.cpus, "collective_timeout": COLLECTIVE_TIMEOUT}

    def put(self, env: MutableMapping[str, str], wanted: Mapping[str, str]) -> None:
        """Set what is not set yet, under no name."""
        for name, value in wanted.items():
            if name not in env and ALIASES.get(name, name) not in env:
                env[name] = self.set[name] = value


def prepare(
    world: World,
    site: Site,
    cores: int,
    env: MutableMapping[str, str] = os.environ,
    interfaces: Path = Path("/sys/class/net"),
) -> Surroundings:
    """Set what libraries read when they are loaded or when ranks meet; to be called before torch is imported.

    ``cores``: this rank's share of the processors. Raises WorldError where the site's network interface is not there.
    """
    kept = {name: env[name] for name in sorted(env) if name.startswith(TOLD) or name in ALSO_TOLD}
    found = Surroundings(kept=kept)
    if world.launcher == "restrain":  # which has set them for its ranks
        found.set |= {name: kept.pop(name) for name in ("MASTER_ADDR", "MASTER_PORT") if name in kept}
    if world.size == 1:
        return found
    wanted = {
        "OMP_NUM_THREADS": str(cores),  # of libraries beside torch, whose own number is the placement's
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",  # a collective that failed ends the process, and nothing waits for it
        "TORCH_FR_BUFFER_SIZE": "2000",  # the flight recorder: so many of the last collectives
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        **site.nccl,
    }
    if world.nodes > 1 and site.interface is not None:
        names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
        if any(name not in {**env, **wanted} for name in names):
            _check_interface(site.interface, interfaces)
        wanted |= {name: site.interface for name in names if name not in wanted}
    found.put(env, wanted)
    return found


def _check_interface(wanted: str, interfaces: Path) -> None:
    try:
        there = sorted(path.name for path in interfaces.iterdir())
    except OSError:
        return
    if missing := [name for name in wanted.split(",") if name not in there]:
        raise WorldError(
            f"The site file says interface: {wanted}, and {os.uname().nodename} has no {missing[0]}, but "
            f"{', '.join(there)}. Correct the site file, or set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME."
        )


def record_into(folder: Path, found: Surroundings, env: MutableMapping[str, str] = os.environ) -> None:
    """Let a collective that times out leave its flight recorder's dump in ``folder``, a file a rank; torch's own, which
    is a pickle: nothing of Restrain reads it."""
    prefix = str(folder.absolute() / "collectives-")
    if ALIASES["TORCH_FR_DUMP_TEMP_FILE"] not in env:
        found.put(env, {"TORCH_FR_DUMP_TEMP_FILE": prefix})
        if "TORCH_FR_DUMP_TEMP_FILE" in found.set:
            found.put(env, {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": prefix})


# ----------------------------------------------------------------------------------------- processors near a rank's GPU


def near(address: str, sysfs: Path = Path("/sys")) -> set[int]:
    """The processors of the memory node that a GPU at a PCI ``address`` (``0000:3b:00.0``) hangs on; empty where that
    is not known."""
    try:
        node = int((sysfs / "bus" / "pci" / "devices" / address.lower() / "numa_node").read_text())
        if node < 0:
            return set()
        return numbers((sysfs / "devices" / "system" / "node" / f"node{node}" / "cpulist").read_text())
    except (OSError, ValueError):
        return set()


def chosen(allowed: set[int], close: set[int], cores: int, sharing: int) -> set[int] | None:
    """The processors to bind a rank to: those of ``allowed`` that are ``close``, where they are enough for each of the
    ``sharing`` ranks there to have its share of ``cores``; None: leave the rank as it is."""
    both = allowed & close
    return both if both != allowed and len(both) >= cores * sharing else None


def bind(addresses: list[str], rank: int, cores: int, found: Surroundings, sysfs: Path = Path("/sys")) -> None:
    """Bind this process to the processors near its GPU. ``addresses``: of the GPUs of this node's ranks, in order."""
    places = [near(address, sysfs) for address in addresses]
    if rank >= len(places) or not places[rank]:
        return
    try:
        cpus = chosen(os.sched_getaffinity(0), places[rank], cores, places.count(places[rank]))
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
            found.cpus = spans(cpus)
    except (AttributeError, OSError):  # no Linux, or not allowed: it is only faster
        return


def numbers(text: str) -> set[int]:
    """``0-3,8`` as numbers; ValueError for anything else."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def spans(cpus: set[int]) -> str:
    """Numbers as ``0-3,8``."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][1] + 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)
