"""Faults and kills that tests plant in a rank before it starts. Nothing of this is in the package."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _send(name: str) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), getattr(signal, name))


def _before(owner: Any, attribute: str, when: Callable[..., bool], act: Callable[[], None]) -> None:
    """Call ``act`` before the call of ``owner.attribute`` for which ``when(count, *args)`` is true; count from 1."""
    original, count = getattr(owner, attribute), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if when(count[0], *args):
            act()
        return original(*args, **kwargs)

    setattr(owner, attribute, wrapped)


# ------------------------------------------------------------------------------------------------------------- kills


def at_step(step: int, signal: str = "SIGKILL") -> None:
    """Before the step that would be number ``step`` of the whole run (counted from 1)."""
    from restrain.training.step import Run

    _before(Run, "step", lambda count, run, batch: run.state.step + 1 == step, _send(signal))


def before_joining(signal: str = "SIGKILL") -> None:
    """Before the rank says that it is there."""
    from restrain.parallel import startup

    _before(startup, "meet", lambda count, *_: count == 1, _send(signal))


def before_the_model(signal: str = "SIGKILL") -> None:
    """After the ranks have met, before the first step."""
    from restrain.training import network

    _before(network, "build_engine", lambda count, *_: count == 1, _send(signal))


def at_accumulation(step: int, signal: str = "SIGKILL") -> None:
    """Between the first and the second micro-batch of a step."""
    from restrain.training.step import Run

    _before(Run, "micro_step", lambda count, run, micro, at, first, *_: at + 1 == step and first > 0, _send(signal))


def in_evaluation(number: int, signal: str = "SIGKILL") -> None:
    """Before the ``number``-th evaluation batch of the attempt is counted."""
    from restrain.training.classify import Classify
    from restrain.training.language import Language

    for task in (Classify, Language):
        _before(task, "sums", lambda count, *_: count == number, _send(signal))


def before_rename(step: int) -> None:
    """A checkpoint is written and not yet renamed."""
    _before(os, "rename", lambda count, a, b: f"step-{step}.tmp-" in str(a) and str(b).endswith(f"step-{step}"), _die)


def while_saving(step: int, later: int = 1) -> None:
    """In the middle of a checkpoint's asynchronous save: its first file is there, the next ones are held back until
    ``later`` steps of training are done; then the kill."""
    from restrain.run import checkpoint
    from restrain.training.step import Run

    write_file, written = checkpoint.write_file, threading.Event()

    def slow(path: Any, tensors: Any) -> Any:
        facts = write_file(path, tensors)
        if f"step-{step}.tmp-" in str(path):
            written.set()
            threading.Event().wait()
        return facts

    def when(count: int, run: Any, batch: Any) -> bool:
        return run.state.step >= step + later and written.wait(60.0)

    checkpoint.write_file = slow
    _before(Run, "step", when, _die)


def before_latest(step: int) -> None:
    """A checkpoint is renamed and LATEST does not name it yet."""
    from restrain.run import checkpoint

    _before(checkpoint, "point", lambda count, folder, name, at: (name, at) == ("LATEST", step), _die)


# ------------------------------------------------------------------------------------------------------------ faults


def swap_rows() -> None:
    """The loader of rank 0 gives its first row to rank 1 and takes that rank's: each hands over the other's sample."""
    from restrain.data.order import Plan

    original = Plan.rows

    def rows(self: Plan, step: int, count: int = 1, at: int = 0, world: int = 1) -> tuple[int, np.ndarray]:
        epoch, positions = original(self, step, count, 0, 1)
        if world > 1:
            half = positions.shape[1] // world
            positions[:, [0, half]] = positions[:, [half, 0]]
            positions = positions[:, at * half : (at + 1) * half]
        return epoch, positions

    _in_loader(rows)


def drop_row() -> None:
    """The loader leaves its third row out and moves the following ones up; the next step's first fills the end."""
    from restrain.data.order import Plan

    original = Plan.rows

    def rows(self: Plan, step: int, count: int = 1, rank: int = 0, world: int = 1) -> tuple[int, np.ndarray]:
        epoch, positions = original(self, step, count, rank, world)
        positions = positions.copy()
        positions[:, 2:-1] = positions[:, 3:]
        positions[:, -1] = (positions[:, -1] + 1) % self.samples
        return epoch, positions

    _in_loader(rows)


def repeat_row() -> None:
    """The loader hands over its first row twice."""
    from restrain.data.order import Plan

    original = Plan.rows

    def rows(self: Plan, step: int, count: int = 1, rank: int = 0, world: int = 1) -> tuple[int, np.ndarray]:
        epoch, positions = original(self, step, count, rank, world)
        positions = positions.copy()
        positions[:, 1] = positions[:, 0]
        return epoch, positions

    _in_loader(rows)


def _in_loader(rows: Callable[..., Any]) -> None:
    """Give the loader's jobs another idea of a step's positions; the step itself keeps the plan's."""
    from restrain.data.loader import TrainLoader

    original = TrainLoader._jobs

    def jobs(self: TrainLoader) -> Any:
        plan = self.plan

        class Wrong:
            def __getattr__(self, name: str) -> Any:
                return getattr(plan, name)

            def rows(self, *args: Any) -> Any:
                return rows(plan, *args)

        self.plan = Wrong()  # pyright: ignore
        try:
            yield from original(self)
        finally:
            self.plan = plan

    TrainLoader._jobs = jobs  # pyright: ignore


def wrong_picture() -> None:
    """The source hands over a neighbour's picture under the right index, with the CRC of what it handed over."""
    from restrain.data.digits import DigitsSource

    original = DigitsSource.rows

    def rows(self: DigitsSource, shard: np.ndarray, j: np.ndarray) -> Any:
        images, labels, crcs = original(self, shard, j)
        other, _, other_crcs = original(self, shard[:1], (j[:1] + 1) % len(self._labels))
        images[0], crcs[0] = other[0], other_crcs[0]
        return images, labels, crcs

    DigitsSource.rows = rows


def wrong_slot() -> None:
    """Pixels of two rows change places after their CRCs were taken: a ring slot with wrong pixels."""
    from restrain.data.loader import TrainLoader

    original = TrainLoader._fill_batch

    def fill(self: TrainLoader, job: Any, slot: Any, first: int, last: int) -> None:
        original(self, job, slot, first, last)
        images = slot.rows(job.pipeline)
        images[[0, 1]] = images[[1, 0]]

    TrainLoader._fill_batch = fill


def global_generator() -> None:
    """An augmentation that reads numpy's global generator instead of its key."""
    from restrain.data.augment import PadCrop

    original = PadCrop.batch
    PadCrop.batch = lambda self, batch, keys: original(
        self, batch, np.random.randint(0, 2**63, len(keys), dtype=np.uint64)
    )


def batchnorm_twice() -> None:
    """Running statistics are committed twice a step."""
    from restrain.models.norm import StagedStatistics

    original = StagedStatistics.commit

    def commit(self: StagedStatistics, groups: int, *more: Any) -> None:
        sums = self.sums.clone()
        original(self, groups, *more)
        self.sums.copy_(sums)
        original(self, groups, *more)

    StagedStatistics.commit = commit


def optimizer_not_restored() -> None:
    """The optimizer's state stays at zero after a resume."""
    from restrain.run.checkpoint import Reader

    original = Reader.read_into

    def read_into(self: Reader, name: str, *where: Any) -> None:
        if not name.endswith("|momentum_buffer"):
            original(self, name, *where)

    Reader.read_into = read_into


def late_learning_rate() -> None:
    """After a resume the learning rate is that of the step before."""
    from restrain.training import build

    original = build.build_factor

    def build_factor(recipe: Any, plan: Any, total: int) -> Any:
        factor = original(recipe, plan, total)
        return lambda step: factor(max(0, step - 1))

    build.build_factor = build_factor


def no_draws() -> None:
    """Every function that draws from a process-wide generator raises."""
    import random

    import torch

    def refuse(name: str) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"{name} read a global generator")

        return draw

    for owner, names in (
        (random, ("random", "randint", "randrange", "choice", "shuffle", "uniform", "gauss", "sample")),
        (np.random, ("random", "rand", "randn", "randint", "uniform", "normal", "permutation", "shuffle", "choice")),
        (torch, ("rand", "randn", "randint", "randperm", "bernoulli", "normal", "multinomial", "dropout")),
        (torch.Tensor, ("uniform_", "normal_", "bernoulli_", "random_", "exponential_")),
        (torch.nn.functional, ("dropout", "dropout2d")),
    ):
        for name in names:
            setattr(owner, name, refuse(f"{owner}.{name}"))


def no_memory(step: int) -> None:
    """A data thread gets no memory, in a step from ``step`` on (counted from 0)."""
    from restrain.data.loader import TrainLoader

    def fill(self: TrainLoader, job: Any, slot: Any, first: int, last: int) -> None:
        if job.step >= step:
            raise MemoryError
        original(self, job, slot, first, last)

    original = TrainLoader._fill_rows
    TrainLoader._fill_rows = fill


def storage_gone(step: int) -> None:
    """From that step on (counted from 0) no shard can be read: a file system that went away."""
    import errno

    from restrain.data.loader import TrainLoader

    def fill(self: TrainLoader, job: Any, slot: Any, first: int, last: int) -> None:
        if job.step >= step:
            os.pread = gone
        original(self, job, slot, first, last)

    def gone(*_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    original = TrainLoader._fill_rows
    TrainLoader._fill_rows = fill


def nan_loss(step: int) -> None:
    """The loss of one step is not a number."""
    from restrain.training.classify import Classify
    from restrain.training.step import Run

    at = [0]
    micro_step, rows = Run.micro_step, Classify.rows

    def watched(self: Run, micro: Any, now: int, *rest: Any) -> Any:
        at[0] = now + 1
        result = micro_step(self, micro, now, *rest)
        at[0] = 0
        return result

    Run.micro_step = watched
    Classify.rows = lambda self, logits, target: rows(self, logits, target) * (float("nan") if at[0] == step else 1.0)


def disk_full(step: int) -> None:
    """The disk is full while the checkpoint of a step is written: half of a file fits."""
    import errno

    from restrain.run import checkpoint

    original = checkpoint.write_file

    def write_file(path: Any, tensors: Any) -> Any:
        facts = original(path, tensors)
        if f"step-{step}.tmp-" in str(path):
            os.truncate(path, os.path.getsize(path) // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return facts

    checkpoint.write_file = write_file


def no_pickles() -> None:
    """Whatever unpickles raises."""
    import pickle

    import torch

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "Unpickler"), (pickle, "_Unpickler"), (pickle, "load"), (pickle, "loads")):
        setattr(owner, name, refuse)
    torch.load = refuse


# ------------------------------------------------------------------------------------------------------------ observers


def count_collectives(path: str) -> None:
    """Write a JSON line a step of this rank: how many collectives of each kind it issued, where its host waited."""
    import json

    from restrain.bench.collectives import watched
    from restrain.training.step import Run

    original = Run.step

    def step(self: Any, batch: Any) -> None:
        with watched() as seen:
            original(self, batch)
        skipped = [block.skipped for block in self.dropping.paths.blocks.values()] if self.dropping.paths else []
        counts = {kind: one.count for kind, one in seen.collectives.items()}
        with open(path, "a") as file:
            file.write(json.dumps({"skipped": sum(skipped), **counts, "waits": seen.waits}) + "\n")

    Run.step = step


def forbid_synchronisation() -> None:
    """Let a step raise where the host asks for the value of a tensor, or for a size that depends on one."""
    import traceback

    from torch.utils._python_dispatch import TorchDispatchMode

    from restrain.bench.collectives import wait
    from restrain.training.step import Run

    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if wait(func, args) is not None:
                stack = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[-12:-1]]
                raise AssertionError(f"the host waits for the device: {func}, from {', '.join(stack)}")
            return func(*args, **(kwargs or {}))

    original = Run.step

    def step(self: Any, batch: Any) -> None:
        with Refusing():
            original(self, batch)

    Run.step = step


def gathers(path: str) -> None:
    """Write a line a step of the parameters that ZeRO-3 gathered in it, one list for each gather, and of the blocks
    that were skipped."""
    import json

    from restrain.parallel.zero import Zero
    from restrain.training.step import Run

    names: list[list[str]] = []
    adopt, step = Zero.adopt, Run.step

    def counted(self: Zero, *args: Any) -> None:
        adopt(self, *args)
        for parameter in self.model.parameters():
            gather = parameter.all_gather_coalesced  # pyright: ignore[reportAttributeAccessIssue]

            def one(parameters: Any, *rest: Any, gather: Any = gather, **more: Any) -> Any:
                names.append(sorted(self.engine.param_names[p] for p in parameters))
                return gather(parameters, *rest, **more)

            parameter.all_gather_coalesced = one  # pyright: ignore[reportAttributeAccessIssue]

    def written(self: Run, batch: Any) -> None:
        names.clear()
        step(self, batch)
        from restrain.models import residual_blocks

        skipped = [name for name, block in residual_blocks(self.task.model) if block.skipped]
        with open(path, "a") as file:
            file.write(json.dumps({"gathered": names, "skipped": skipped}) + "\n")

    Zero.adopt, Run.step = counted, written


def misled(how: str) -> None:
    """Let a step do once more what its collectives are counted for, or ask for a value; named by ``how``."""
    import torch
    import torch.distributed as dist

    from restrain.training.step import Run

    original = Run.update

    def update(self: Any, *args: Any) -> Any:
        if how == "reduce":
            dist.all_reduce(torch.zeros(1))
        elif how == "gather":
            dist.all_gather_into_tensor(torch.zeros(self.world.size), torch.zeros(1))
        elif how == "wait":
            float(args[1][0])
        elif how == "mask":
            args[1][args[1] > 0]
        return original(self, *args)

    Run.update = update


# ------------------------------------------------------------------------------------------------- ranks that differ


def other_version() -> None:
    """This rank's torch says to be an older one."""
    import torch

    torch.__version__ = "2.14.0"  # pyright: ignore[reportPrivateImportUsage]


def other_data() -> None:
    """This rank finds other bytes in the set."""
    from restrain.training import build

    original = build.identity
    build.identity = lambda *arguments: {**original(*arguments), "samples": 17}


def opening_fails(signal: str | None = None) -> None:
    """This rank cannot open the data, or gets a signal while it tries."""
    from restrain.training import build

    def fails(*arguments: Any, **named: Any) -> Any:
        if signal is not None:
            _send(signal)()
        raise OSError("the file system of this node is gone")

    build.open_data = fails


def evaluation_fails(number: int) -> None:
    """This rank has an error at the ``number``-th evaluation batch of the attempt."""
    from restrain.training.classify import Classify

    def fails() -> None:
        raise OSError("this evaluation batch cannot be read")

    _before(Classify, "sums", lambda count, *_: count == number, fails)


def short_collectives(seconds: float) -> None:
    """A collective is waited for so long."""
    from datetime import timedelta

    from restrain.parallel import distributed

    distributed.COLLECTIVE_TIMEOUT = timedelta(seconds=seconds)


def trained_before(run: str) -> None:
    """This process has trained another run, under the same launcher."""
    from restrain.cli.main import run as command

    assert command(["train", "digits_resnet20", "length=1st", "seed=7", "evaluate.every=1st", "--run", run]) == 0


def short_silence(seconds: float) -> None:
    """The ranks are given up after fewer seconds without a sign of life."""
    from restrain.parallel import startup

    startup.BEAT, startup.SILENT = seconds / 10, seconds


def other_restrain() -> None:
    """This rank has an older Restrain."""
    from restrain.parallel import startup

    startup.__version__ = "0.0.0"


def count_graphs(path: str) -> None:
    """Write a line a step of this rank: how many graphs torch has compiled so far, and how often one was broken off.

    Blocks are compiled by ``aot_eager``: what compilation does to a graph, without the minute of C++ compilation.
    """
    import json

    from torch._dynamo.utils import counters

    from restrain.parallel import blocks
    from restrain.training.step import Run

    blocks.apply_compile.__defaults__ = ("aot_eager",)
    original = Run.step

    def step(self: Any, batch: Any) -> None:
        original(self, batch)
        found = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
        with open(path, "a") as file:
            file.write(json.dumps(found) + "\n")

    Run.step = step


def without_package(name: str) -> None:
    """As on a machine where it is not installed."""
    import importlib.util

    find = importlib.util.find_spec
    importlib.util.find_spec = lambda wanted, package=None: None if wanted == name else find(wanted, package)
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
