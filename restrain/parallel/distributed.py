"""Process groups and what ranks tell each other outside of a step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from restrain.errors import RestrainError, UserError, WorldError
from restrain.models.span import Span
from restrain.parallel.world import World, rendezvous

LEFT = "Rank 0 went away before the run began; its own message says why."
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


def connect(world: World, device: torch.device, alone: bool = False) -> None:
    """Join the process group of a run; nothing for a single process, unless its layout needs one (``alone``)."""
    if dist.is_initialized() or (world.size == 1 and not alone):
        return
    if world.size == 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
        return
    rendezvous(world, os.environ)  # pyright: ignore[reportArgumentType]
    world.export(os.environ)  # pyright: ignore[reportArgumentType]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=COLLECTIVE_TIMEOUT)


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


def explained(error: RuntimeError, world: World) -> Exception:
    """A collective that failed because another rank is gone, in words; any other error as it is."""
    said = str(error)
    signs = (
        "closed by peer",
        "reset by peer",
        "Broken pipe",
        "remote process exited",
        "Timed out",
        "timed out waiting",
    )
    if world.size == 1 or not any(sign in said for sign in signs):
        return error
    return WorldError(
        f"Rank {world.rank} lost the connection to another rank, whose own message says why it left. The same command "
        f"with the same --run goes on from the last checkpoint. (The library said: {said.splitlines()[0][:200]})"
    )


class Told:
    """What rank 0 has to say to the others before the first collective: over the store, as JSON, never pickled."""

    def __init__(self, world: World):
        self.world, self.number = world, 0

    def first_rank(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` on rank 0; all ranks return its JSON value. Its error ends all ranks, told by rank 0 alone."""
        if self.world.size == 1:
            return work()
        self.number += 1
        name, store = f"restrain/{self.number}", dist.distributed_c10d._get_default_store()
        if self.world.rank == 0:
            try:
                value = work()
            except BaseException as error:
                code = error.exit_code if isinstance(error, RestrainError) else 1
                store.set(name, json.dumps({"failed": code}))
                self._heard(name, store)
                raise
            store.set(name, json.dumps({"value": value}))
            self._heard(name, store)
            return value
        while True:  # indexing a large set may take longer than any one time-out
            try:
                store.wait([name], timedelta(seconds=30))
                break
            except dist.DistError as error:
                if "imeout" not in str(error):
                    raise WorldError(LEFT) from None
        told = json.loads(store.get(name))
        store.add(f"{name}/heard", 1)
        if "failed" in told:
            raise SystemExit(told["failed"])
        return told["value"]

    def _heard(self, name: str, store: Any) -> None:
        """Rank 0 hosts the store, and may leave next: wait until the others have read it, or are gone."""
        end = time.monotonic() + 10.0
        while store.add(f"{name}/heard", 0) < self.world.size - 1 and time.monotonic() < end:
            time.sleep(0.01)


def refuse_unequal(world: World, digest: str) -> None:
    """All ranks must have been given the same recipe (torchrun and srun let each have its own), and decode alike."""
    if world.size == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    if world.rank == 0:
        store.set("restrain/recipe", digest)
    try:
        store.wait(["restrain/recipe"], timedelta(minutes=10))
    except dist.DistError:
        raise WorldError(LEFT) from None
    if store.get("restrain/recipe").decode() != digest:
        raise UserError(
            f"Rank {world.rank} was given another recipe than rank 0, or has another version of the decoder "
            f"(data.decode). Start all ranks with the same command, from the same files and in the same environment."
        )


class LaidOut(DDPStrategy):
    """Several ranks, on which the run's module has laid out its network itself: Lightning's own wrapping, of DDP and of
    FSDP2 alike, takes one Lightning batch for one micro-batch, while ours is a whole optimizer step of several."""

    def model_to_device(self) -> None:
        """It is there; moving parameters that are cut over ranks would make others of them."""

    def configure_ddp(self) -> None:
        module = self.lightning_module
        assert module is not None
        module.share_gradients()  # pyright: ignore[reportCallIssue]
