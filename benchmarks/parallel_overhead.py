"""What Restrain's step costs above a bare loop under each layout: DDP, FSDP2 and DeepSpeed's ZeRO, on two gloo ranks.

``python benchmarks/parallel_overhead.py [--json FILE]``. The model is the same GPT, in fp32, with one micro-step of the
same rows on the device and torch's fused AdamW; the loops are in one process a rank and run in turn, a window of steps
each, so that other load falls on both. The bare loops are what one writes without a framework: forward, cross-entropy,
backward, ``clip_grad_norm_`` (DeepSpeed: ``gradient_clipping``) where it is on, step. Restrain's is ``Run.step`` and
its border with what a run does: guard, gradient norm, ledger, the vector of the ranks. Without clipping it does more
than they do, since it takes the norm all the same. DeepSpeed's buckets are those of Restrain's engine in both.

The ratio of a row is the median over the rounds of the ratio within a round; ``same`` is a bare loop above another one
built alike, which is how far this measurement can be trusted. Processor time is that of rank 0's process with all its
threads; where other work shares the machine, it alone says what a loop needs.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import reporting

LAYOUTS = ("ddp", "fsdp", "zero1", "zero2", "zero3")
CLIP = 1.0
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
RANKS = 2
Step = Callable[[], None]


def words(args: argparse.Namespace, layout: str, clip: bool) -> list[str]:
    """The recipe of a run, as overrides of ``shakespeare_gpt``."""
    shape = f"{{depth: {args.depth}, width: {args.width}, heads: 8, context: {args.context}}}"
    adamw = f"name: adamw, lr: {ADAMW['lr']}, betas: [0.9, 0.95], weight_decay: {ADAMW['weight_decay']}, no_decay: none"
    return [
        f"model.shape={shape}",
        f"data.context={args.context}",
        "model.classes=1000",
        f"batch.global={args.batch}",
        "batch.group=1",
        f"batch.micro={args.batch // RANKS}",
        f"optimizer={{{adamw}}}",
        f"clip={CLIP if clip else 'null'}",
        "precision=fp32",
        "ema=null",
        f"parallel.strategy={layout}",
        "parallel.accelerator=cpu",
        "parallel.threads=1",
    ]


def restrain_step(recipe: Any, world: Any, folder: Path) -> Any:
    import torch

    from restrain.bench.stepping import prepare, settle
    from restrain.training import opening
    from restrain.training.placement import Placement

    device = torch.device("cpu")
    autos, where = settle(recipe, world, device)
    return prepare(opening.settle(recipe, autos), world, device, Placement(**where), folder)


def bare_step(recipe: Any, layout: str, rows: Any, clip: bool, ours: Any) -> Step:
    """The same model in a loop of its own. ``ours``: Restrain's engine, whose DeepSpeed keys it takes."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel

    from restrain.models import residual_blocks
    from restrain.training import network

    model: nn.Module = network.build_model_on(recipe, torch.device("cpu"), recipe.seed).train()
    inputs, target = rows[:, :-1], rows[:, 1:].flatten()

    def loss_of(network: nn.Module) -> torch.Tensor:
        return F.cross_entropy(network(inputs).flatten(0, 1), target)

    if layout.startswith("zero"):
        import deepspeed

        if layout == "zero3":
            from deepspeed.utils.z3_leaf_module import set_z3_leaf_module

            for _, block in residual_blocks(model):
                set_z3_leaf_module(block, True)
        zero = {key: value for key, value in ours.config["zero_optimization"].items() if key != "compute_grad_norm"}
        config = ours.config | {"gradient_clipping": CLIP if clip else 0.0, "zero_optimization": zero}
        optimizer = torch.optim.AdamW(model.parameters(), fused=True, **ADAMW)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)

        def step() -> None:
            engine.backward(loss_of(engine))
            engine.step()

        return step
    network = model
    if layout == "ddp":
        network = DistributedDataParallel(model, gradient_as_bucket_view=True)
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for _, block in residual_blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **ADAMW)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(network).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def rank_of(rank: int, port: int, args: argparse.Namespace, layout: str, clip: bool, queue: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.environ |= {"RESTRAIN_LAUNCHED": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch
    import torch.distributed as dist

    from restrain.parallel import distributed
    from restrain.parallel.world import World
    from restrain.recipe import load
    from restrain.training.lightning import quiet

    torch.set_num_threads(1)
    world = World(rank, RANKS, rank, RANKS, 0, "restrain")
    distributed.connect(world, torch.device("cpu"))
    recipe = load("shakespeare_gpt", words(args, layout, clip)).recipe
    with quiet(), tempfile.TemporaryDirectory() as folder:
        ours = restrain_step(recipe, world, Path(folder))
        rows = ours.micros[0].images
        made: dict[str, Step] = {
            "bare": bare_step(recipe, layout, rows, clip, ours.run.engine),
            "restrain": ours.step,
            "same": bare_step(recipe, layout, rows, clip, ours.run.engine),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
        for turn in range(-1, args.rounds):
            for name, step in made.items():
                dist.barrier()
                began, clock = time.perf_counter(), time.process_time()
                for _ in range(args.steps):
                    step()
                if turn >= 0:
                    wall, cpu = time.perf_counter() - began, time.process_time() - clock
                    seconds[name].append((wall / args.steps, cpu / args.steps))
    if rank == 0:
        queue.put(seconds)
    dist.barrier()
    os._exit(0)  # what DeepSpeed has registered to run at an exit talks to ranks that may be gone


def measured(args: argparse.Namespace, layout: str, clip: bool) -> dict[str, Any]:
    """Seconds a step of each loop, and how much more than the bare one, by the clock and by the processor."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    queue = context.Queue()
    ranks = [context.Process(target=rank_of, args=(rank, port, args, layout, clip, queue)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    try:
        seconds = queue.get(timeout=600)
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    found: dict[str, Any] = {}
    for number, clock in enumerate(("wall", "cpu")):
        times = {name: [pair[number] for pair in pairs] for name, pairs in seconds.items()}
        ratios = {
            name: statistics.median(one / bare for one, bare in zip(times[name], times["bare"], strict=True))
            for name in ("restrain", "same")
        }
        found[clock] = {
            "seconds": {name: reporting.spread(values) for name, values in times.items()},
            "above": {name: ratio - 1 for name, ratio in ratios.items()},
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="of a window; each loop has one in a round")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="windows a step, over both ranks")
    parser.add_argument("--clip", default="on,off", help="on, off or both")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args(argv)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    results: dict[str, Any] = {}
    rows = []
    for layout in args.layouts.split(","):
        for clip in args.clip.split(","):
            one = results[f"{layout}, clip {clip}"] = measured(args, layout, clip == "on")
            cells = []
            for found in one.values():
                cells += [f"{1e3 * found['seconds'][name]['median']:.1f}" for name in ("bare", "restrain")]
                cells += [f"{100 * found['above'][name]:+.1f} %" for name in ("restrain", "same")]
            rows.append([layout, clip, *cells])
            reporting.write(args.json, vars(args), results)
    header = ["bare ms", "restrain ms", "above", "same"]
    reporting.table(["layout", "clip", *header, *(f"cpu: {name}" for name in header)], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
