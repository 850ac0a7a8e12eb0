"""What a rank holds under each layout, predicted from shapes and measured, and how far its memory grows on the way.

``python benchmarks/layout_memory.py [--layouts ...] [--json FILE]``. Each layout is a world of fresh processes on this
machine (gloo), one layout at a time: the recipe's model and optimizer, two steps of one short window a rank, a
checkpoint written and read. The figures are those of the rank that is furthest off. Layouts that are not measured keep
theirs in a file that is there already. Linux only.

* *predicted*: weights, gradients and optimizer between backward pass and update, as ``restrain check`` prints it.
* *held*: by how much the process's resident memory, that of files apart, has grown by then since before the model was
  built. *tensors*: the bytes of all tensors that Python knows by then, beside it.
* *building*, *optimizer*, *loading*, *saving*: how far the peak of resident memory (VmHWM, reset through
  ``/proc/self/clear_refs`` before each part) rises above what was resident. Each may take what the rank then holds for
  good, and the largest part that is gathered as one, or the largest parameter where that is more; saving, a snapshot
  of what the rank saves besides; loading, the 32 MiB of a file that are mapped at a time.

glibc is told to give freed memory of a megabyte and more back (MALLOC_MMAP_THRESHOLD_); by default it keeps some of it
in the arenas of threads, 28 MB a rank with fsdp on two.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import reporting
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from resident import own, peak, reset

from restrain.insight.units import size
from restrain.optim.optimizers import build_optimizer
from restrain.optim.stepping import create_state, guarded_step
from restrain.parallel.layout import Layout, layout_of
from restrain.parallel.world import World
from restrain.recipe import Recipe, load
from restrain.run.checkpoint import Reader, Writer
from restrain.run.reader import MAPPED
from restrain.training import inspection, network
from restrain.training.memory import free_on_host, held_of
from restrain.training.state import RunState

LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {  # name -> processes, overrides
    "single": (1, ()),
    "ddp 2": (2, ("strategy=ddp",)),
    "fsdp 2": (2, ("strategy=fsdp",)),
    "zero3 2": (2, ("strategy=zero3",)),
    "zero2 2": (2, ("strategy=zero2",)),
    "zero1 2": (2, ("strategy=zero1",)),
    "tensor 2": (2, ("strategy=ddp", "tensor=2")),
    "tensor 2 x fsdp 2": (4, ("strategy=fsdp", "tensor=2")),
    "hsdp 2x2": (4, ("strategy=hsdp", "shard=2")),
    "fsdp 4": (4, ("strategy=fsdp",)),
    "zero3 4": (4, ("strategy=zero3",)),
    "zero2 4": (4, ("strategy=zero2",)),
    "zero1 4": (4, ("strategy=zero1",)),
    "ddp 4": (4, ("strategy=ddp",)),
}
PARTS = ("building", "optimizer", "saving", "loading")
SMALL = ("model.name=gpt", "model.shape={depth: 2, width: 64, heads: 4, context: 16}", "data.context=16")
CPU, TOKENS = torch.device("cpu"), 16


def recipe_of(name: str, layout: str, *words: str) -> tuple[Recipe, Layout]:
    """The recipe with one row a rank, and how it lies over the ranks."""
    ranks, placed = LAYOUTS[layout]
    fixed = ["precision=fp32", "batch.group=1", "batch.micro=1", *(f"parallel.{word}" for word in placed)]
    world = World(size=ranks, local_size=ranks)
    found = layout_of(load(name, [*words, *fixed]).recipe.parallel, world)
    return load(name, [*words, *fixed, f"batch.global={found.data}"]).recipe, found


class Rank:
    """One process's part of a run."""

    def __init__(self, recipe: Recipe, layout: Layout, rank: int):
        self.recipe, self.engine = recipe, network.build_engine(recipe, CPU, None, layout, rank, 1)

    def add_optimizer(self) -> None:
        engine = self.engine
        self.optimizer = build_optimizer(
            self.recipe.optimizer,
            engine.grouped(),
            batch_global=self.recipe.batch.global_,
            leaf=engine.optimized,
            adopt=lambda optimizer: engine.adopt(optimizer, create_state),
        )
        engine.share_gradients(CPU)
        self.state = RunState(engine.model, self.optimizer, segments=[], engine=engine)

    def differentiate(self) -> None:
        """A forward and a backward pass of one window; gradients stay."""
        tokens = torch.arange(TOKENS)[None]
        self.engine.clear()
        with self.engine.micro_step(last=True):
            logits = self.engine.net(tokens).float()
            rows = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(1)
            self.engine.backward(rows, torch.ones_like(rows))
        self.engine.gradients()

    def update(self) -> None:
        self.engine.commit(self.optimizer, torch.zeros(()), guarded_step)


def tensors() -> dict[int, int]:
    """Bytes of each storage on the host that a tensor known to Python has, by its address."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            with suppress(RuntimeError):  # what only stands for a tensor has no memory
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found


def measured(name: str, layout: str, rank: int, folder: str) -> dict[str, Any]:
    """The figures of one rank."""
    recipe, lies = recipe_of(name, layout)
    small = Rank(recipe_of(name, layout, *SMALL)[0], lies, rank)
    small.add_optimizer()
    for _ in range(2):  # what torch sets up in its first steps is no model's memory
        small.differentiate()
        small.update()
    small.engine.rest()
    del small
    found: dict[str, Any] = {}
    at_first, at_first_own, known = reset(), own(), tensors()
    run = Rank(recipe, lies, rank)
    found["growth_building"] = peak() - at_first
    before = reset()
    run.add_optimizer()
    found["growth_optimizer"] = peak() - before
    run.differentiate()
    run.update()
    run.differentiate()
    reset()
    found["held"] = own() - at_first_own
    found["tensors"] = sum(size for address, size in tensors().items() if address not in known)
    run.update()
    run.engine.rest()
    run.engine.clear()
    saved = run.state.tensors()
    found["snapshot"] = sum(part.tensor.numel() * part.tensor.element_size() for of in saved.values() for part in of)
    dist.barrier()
    before = reset()
    writer = Writer(folder, rank, lies.world, 1)
    writer.save(1, saved, run.state.scalars())
    writer.wait()
    found["growth_saving"] = peak() - before
    del writer, saved
    dist.barrier()
    before = reset()
    with Reader(Path(folder) / "step-1") as reader:
        run.state.restore(reader)
    found["growth_loading"] = peak() - before
    return found


def process(rank: int, name: str, layout: str, folder: str, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    ranks = LAYOUTS[layout][0]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(ranks)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    answers.put((rank, measured(name, layout, rank, folder)))
    dist.barrier()
    dist.destroy_process_group()


def ranks_of(name: str, layout: str) -> dict[int, dict[str, Any]]:
    """:func:`measured` on every rank of a world."""
    context: Any = mp.get_context("forkserver")
    context.set_forkserver_preload(["layout_memory"])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    answers, found = context.Queue(), {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = (name, layout, folder, port, answers)
        processes = [context.Process(target=process, args=(rank, *arguments)) for rank in range(LAYOUTS[layout][0])]
        for one in processes:
            one.start()
        try:
            while len(found) < len(processes):
                try:
                    rank, figures = answers.get(timeout=5)
                    found[rank] = figures
                except queue.Empty:
                    if any(one.exitcode for one in processes):
                        raise RuntimeError(f"a process of {layout} ended; its traceback is above") from None
        finally:
            for one in processes:
                one.join(30)
                one.kill()
    return found


def wanted(name: str, layout: str) -> int:
    """Bytes that a world may take: what its ranks hold, as much again while they save, and their interpreters."""
    recipe, lies = recipe_of(name, layout)
    model = inspection.model_without_memory(recipe)
    return sum(2 * held_of(recipe, model, lies, 1, rank).total + (500 << 20) for rank in range(lies.world))


def compared(name: str, layout: str) -> dict[str, Any]:
    """The figures of a layout beside what was predicted, each of the rank that is furthest off."""
    recipe, lies = recipe_of(name, layout)
    model = inspection.model_without_memory(recipe)
    shares = [held_of(recipe, model, lies, 1, rank) for rank in range(lies.world)]
    ranks = ranks_of(name, layout)
    most = max(shares[0].gathered, max(p.numel() * p.element_size() for p in model.parameters()))
    row: dict[str, Any] = {"processes": lies.world, "unit": most}
    off = {rank: found["held"] / shares[rank].total - 1 for rank, found in ranks.items()}
    worst = max(off, key=lambda rank: abs(off[rank]))
    row |= {"predicted": shares[worst].total, "held": ranks[worst]["held"], "tensors": ranks[worst]["tensors"]}
    row["off"] = off[worst]
    may = {
        "building": [share.weights for share in shares],
        "optimizer": [share.total - share.weights for share in shares],
        "saving": [ranks[rank]["snapshot"] for rank in range(lies.world)],
        "loading": [MAPPED] * lies.world,
    }
    for part in PARTS:
        over = {rank: found[f"growth_{part}"] - may[part][rank] - most for rank, found in ranks.items()}
        worst = max(over, key=lambda rank: over[rank])
        row |= {f"growth_{part}": ranks[worst][f"growth_{part}"], f"may_{part}": may[part][worst] + most}
    return row | {"ranks": [ranks[rank] for rank in range(lies.world)]}


HEADER = ("layout", "predicted MB", "held MB", "off", "tensors MB", "building", "optimizer", "saving", "loading")


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    mb = {key: f"{value / 1e6:,.0f}" for key, value in row.items() if key not in ("off", "ranks", "processes")}
    growth = [f"{mb[f'growth_{part}']} of {mb[f'may_{part}']}" for part in PARTS]
    return [name, mb["predicted"], mb["held"], f"{100 * row['off']:+.1f} %", mb["tensors"], *growth]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="gpt2_124m")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--json", type=Path, help="write the figures to this file, after each layout")
    args = parser.parse_args(argv)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)  # of the processes that are started
    results = json.loads(args.json.read_text())["results"] if args.json and args.json.exists() else {}
    for name in args.layouts.split(","):
        needed, free = wanted(args.recipe, name), free_on_host()
        if needed > free:
            print(f"{name}: left out, it may take {size(needed)} and {size(free)} are free", flush=True)
            continue
        results[name] = compared(args.recipe, name)
        print("  ".join(cells(name, results[name])), flush=True)
        results = {key: results[key] for key in LAYOUTS if key in results}
        reporting.write(args.json, vars(args), results)
    reporting.table(HEADER, [cells(name, row) for name, row in results.items()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
