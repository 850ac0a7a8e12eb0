"""Process groups and what ranks tell each other outside of a step."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from restrain.errors import WorldError
from restrain.models.span import Span
from restrain.parallel import environment, startup
from restrain.parallel.startup import Told
from restrain.parallel.world import World, rendezvous

COLLECTIVE_TIMEOUT = timedelta(seconds=environment.COLLECTIVE_TIMEOUT)


def backend_of(device: torch.device) -> str:
    """The library of collectives for tensors of a device."""
    return "nccl" if device.type == "cuda" else "gloo"


def connect(world: World, device: torch.device, alone: bool = False, start: float = 45.0) -> Told:
    """Join the process group of a run; nothing for a single process, unless its layout needs one (``alone``).

    ``start``: seconds to wait for the others. Raises WorldError on rank 0, naming those that did not come.
    """
    if world.size == 1:
        if alone and not dist.is_initialized():
            dist.init_process_group(backend_of(device), store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
        return Told(world)
    if dist.is_initialized():
        return Told(world, startup.own_part(dist.distributed_c10d._get_default_store()))
    rendezvous(world, os.environ)  # pyright: ignore[reportArgumentType]
    world.export(os.environ)  # pyright: ignore[reportArgumentType]
    seconds = startup.patience(start)
    store = startup.meet(world, os.environ, seconds)
    told = Told(world, store)
    try:
        return _joined(told, device, seconds)
    except BaseException:
        told.started()
        raise


def _joined(told: Told, device: torch.device, seconds: float) -> Told:
    world, backend = told.world, backend_of(device)
    startup.roll_call(told, seconds)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=seconds)
    try:
        dist.init_process_group(backend, store=told.store, rank=world.rank, world_size=world.size, timeout=timeout)
    except RuntimeError as error:
        raise gone(str(error), told) from error
    dist.set_timeout(COLLECTIVE_TIMEOUT)
    return told


def leave(world: World) -> None:
    """Leave the process group, so that the ranks' last messages are read before their sockets close."""
    if dist.is_initialized():
        dist.destroy_process_group()


def span_of(rank: int, ranks: int) -> Span | None:
    """The ranks that share this rank's groups, each group lying over ``ranks`` that follow each other; None for one.

    To be called once a run, by all ranks, which each make the process group of their own span alone.
    """
    if ranks == 1:
        return None
    first = rank // ranks * ranks
    members = list(range(first, first + ranks))
    return Span(dist.new_group(members, timeout=COLLECTIVE_TIMEOUT, use_local_synchronization=True))  # pyright: ignore


def explained(error: RuntimeError, told: Told) -> Exception:
    """A collective that failed because another rank is gone, in words; any other error as it is."""
    said = str(error)
    signs = (
        "closed by peer",
        "reset by peer",
        "Broken pipe",
        "remote process exited",
        "Timed out",
        "timed out waiting",
        "timeout caused",
    )
    if told.world.size == 1 or not any(sign in said for sign in signs):
        return error
    return gone(said, told)


def write_collectives(path: Path) -> None:
    """What the flight recorder has of the last collectives, as JSON; beside a failure, which matters more."""
    recorder = torch._C._distributed_c10d  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(Exception):
        told = recorder._dump_nccl_trace_json() if dist.get_backend() == "nccl" else recorder._dump_fr_trace_json()
        path.write_bytes(told)


def addresses(world: World) -> list[str]:
    """The PCI addresses of the GPUs of this node's ranks, in order."""
    found = []
    for index in range(min(world.local_size, torch.cuda.device_count())):
        gpu = torch.cuda.get_device_properties(index)
        found.append(f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0")
    return found


def gone(said: str, told: Told) -> WorldError:
    """Which rank has left, as far as the others can find out, for the rank that noticed."""
    who = startup.lost(told)
    missing = f"{who} does not answer any more. " if who else ""
    return WorldError(
        f"Rank {told.world.rank} lost the connection to another rank, whose own message says why it left. {missing}The "
        f"same command with the same --run goes on from the last checkpoint, or begins again where there is none. (The "
        f"library said: {said.splitlines()[0][:200]})"
    )


class LaidOut(DDPStrategy):
    """Several ranks, on which the run's module has laid out its network itself: Lightning's own wrapping, of DDP and of
    FSDP2 alike, takes one Lightning batch for one micro-batch, while ours is a whole optimizer step of several."""

    def setup(self, trainer: L.Trainer) -> None:
        """Nothing is moved: the network is where it computes, and its optimizer may be in the host's memory."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        module = self.lightning_module
        assert module is not None
        module.share_gradients()  # pyright: ignore[reportCallIssue]
        self.setup_optimizers(trainer)
