"""What a rank holds under each layout, predicted from shapes and measured, and how far its memory grows on the way.

``python benchmarks/layout_memory.py [--model gpt2] [--layouts ...] [--json FILE]``. Each layout is a world of processes
on this machine (gloo). A rank builds the model by its layout, with SGD's momentum and gradients, saves a checkpoint and
loads it. *Held* is the sum of the bytes of weights, gradients and optimizer state; it is compared with the prediction
that ``restrain check`` prints. *Growth* is that of the process's peak of resident memory (VmHWM, reset through
``/proc/self/clear_refs`` before each part), compared with what the part may take: the rank's share and the largest
sharded unit, and while saving one snapshot besides.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import reporting
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from restrain.models import build_model, residual_blocks
from restrain.models.init import materialise
from restrain.optim.optimizers import build_optimizer
from restrain.parallel.engine import DataParallel, Engine
from restrain.parallel.layout import Layout
from restrain.parallel.partition import elements, partition_of
from restrain.parallel.sharded import Sharded
from restrain.run.checkpoint import Reader, Writer
from restrain.training.state import RunState

LAYOUTS = {
    "single": Layout("single", 1),
    "ddp 2": Layout("ddp", 2),
    "fsdp 2": Layout("fsdp", 2, 1, 2),
    "tensor 2": Layout("ddp", 2, 2),
    "fsdp 4": Layout("fsdp", 4, 1, 4),
    "hsdp 2x2": Layout("hsdp", 4, 1, 2),
    "tensor 2 x fsdp 2": Layout("fsdp", 4, 2, 2),
}
SMALL = {"name": "gpt", "classes": 64, "shape": {"depth": 1, "width": 64, "heads": 4, "context": 8}}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False, "no_decay": "none",
       "lr_per": None, "lr_rule": "none"}  # fmt: skip


def peak() -> int:
    """Largest resident memory since the last :func:`reset`, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset() -> int:
    """Forget the peak; what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def build(section: dict[str, Any], layout: Layout, rank: int) -> Engine:
    """The model on this rank, filled."""
    device = torch.device("cpu")
    with torch.device("meta"):
        model = build_model(section)
    if layout.is_sharded:
        engine = Sharded(model, layout, rank, device)
        engine.materialise(device, 0)
        return engine
    materialise(model, device, 0)
    return (DataParallel if layout.strategy == "ddp" else Engine)(model, layout, rank)


def rank_of(rank: int, layout: Layout, section: dict[str, Any], folder: str, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=layout.world)
    found: dict[str, Any] = {}
    build(SMALL, layout, rank)  # what torch imports and sets up in its first sharded model is no model's memory
    before = reset()
    engine = build(section, layout, rank)
    model = engine.model
    found["growth_building"] = peak() - before
    optimizer = build_optimizer(SGD, model, batch_global=1, leaf=engine.optimized)
    for _, leaf in engine.leaves():
        leaf.grad = torch.zeros_like(leaf)
    leaves = [leaf for _, leaf in engine.leaves()]
    tensors = [*leaves, *(leaf.grad for leaf in leaves), *(optimizer.state[leaf]["momentum_buffer"] for leaf in leaves)]
    found["held"] = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    state = RunState(model, optimizer, segments=[], engine=engine)
    before = reset()
    writer = Writer(folder, rank, layout.world, 1)
    writer.save(1, state.tensors(), state.scalars())
    writer.wait()
    found["growth_saving"] = peak() - before
    dist.barrier()
    before = reset()
    with Reader(Path(folder) / "step-1") as reader:
        state.restore(reader)
    found["growth_loading"] = peak() - before
    queue.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


def measure(layout: Layout, section: dict[str, Any]) -> dict[str, Any]:
    """The worst rank of a world beside what was predicted for it."""
    context = mp.get_context("spawn")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (layout, section, folder, port, queue)
        processes = [context.Process(target=rank_of, args=(rank, *arguments)) for rank in range(layout.world)]
        for process in processes:
            process.start()
        ranks = dict(queue.get(timeout=600) for _ in processes)
        for process in processes:
            process.join()
    with torch.device("meta"):
        model = build_model(section)
    parameters = dict(model.named_parameters())
    shares = [4 * elements(partition_of(model, layout, rank), parameters, rank) for rank in range(layout.world)]
    largest = max(sum(p.numel() for p in block.parameters()) for _, block in residual_blocks(model))
    inside = {id(p) for _, block in residual_blocks(model) for p in block.parameters()}
    largest = 4 * max(largest, sum(p.numel() for p in model.parameters() if id(p) not in inside)) // layout.tensor
    # The snapshot has what the rank saves: weights and momentum, and of replicas one rank all of it.
    return {
        "predicted": 3 * max(shares),
        "held": max(one["held"] for one in ranks.values()),
        "off": max(abs(ranks[rank]["held"] / (3 * share) - 1) for rank, share in enumerate(shares)),
        "share": max(shares),
        "largest_unit": largest,
        "growth_building": max(one["growth_building"] for one in ranks.values()),
        "may_building": max(shares) + largest,
        "growth_saving": max(one["growth_saving"] for one in ranks.values()),
        "may_saving": 2 * max(shares) + largest,
        "growth_loading": max(one["growth_loading"] for one in ranks.values()),
        "may_loading": max(shares) + largest,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args(argv)
    section = {"name": args.model, "classes": 50257}
    results, rows = {}, []
    for name in args.layouts.split(","):
        one = results[name] = measure(LAYOUTS[name], section)
        mb = {key: f"{value / 1e6:,.0f}" for key, value in one.items() if key != "off"}
        growth = [f"{mb[f'growth_{part}']} of {mb[f'may_{part}']}" for part in ("building", "saving", "loading")]
        rows.append([name, mb["predicted"], mb["held"], f"{100 * one['off']:.2f} %", *growth])
        reporting.write(args.json, vars(args), results)
    reporting.table(["layout", "predicted MB", "held MB", "off", "building", "saving", "loading"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
