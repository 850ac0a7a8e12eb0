"""Time and memory of a training step over depth: a ResNet and a transformer of 50 to 1,000 blocks, with and without
remat by block, and 20 steps of ResNet-1202 and of the 1,000-block transformer. (``benchmarks/remat.py`` has the other
ways to recompute.)

``python benchmarks/depth.py [--json FILE]``. Each measurement is a fresh process, and its peak is VmHWM (a forked child
would inherit ``ru_maxrss`` from its parent). What is reported a block is the difference to the smallest depth, divided
by the blocks in between: stem, head and the interpreter drop out. Linux only. ``docs/figures/depth.py`` draws it.

The transformer is pre-norm, 64 wide, of 64 tokens in batches of 4; the ResNet has the CIFAR sizes, batches of 8. Both
train with SGD and momentum, in fp32, with one thread; times are those that the processor spent on the process.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import reporting

BLOCKS = (50, 100, 200, 500, 1000)
SHOWN = {"resnet": "ResNet", "transformer": "transformer"}
FULL = {"resnet": 600, "transformer": 1000}  # blocks of the 20-step runs; 600 of two layers are ResNet-1202
FULL_STEPS = 20


def status(field: str) -> float:
    """A field of this process's memory in MB: VmRSS, VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1e3
    raise LookupError(field)


def resnet(blocks: int) -> tuple[Any, Any, int]:
    """A CIFAR ResNet of 3n blocks, the nearest to ``blocks``; (model, inputs, blocks)."""
    import torch

    from restrain.models import init_model
    from restrain.models.convnets.resnet import BasicBlock, ResNetSpec, build
    from restrain.models.wish import Wish

    each = round(blocks / 3)
    model = build(ResNetSpec(BasicBlock, (each, each, each), cifar=True), Wish(f"blocks{3 * each}", classes=10))
    init_model(model, 0)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return model, images.contiguous(memory_format=torch.channels_last), 3 * each


def transformer(blocks: int) -> tuple[Any, Any, int]:
    """A GPT of ``blocks`` blocks; (model, inputs, blocks)."""
    import torch

    from restrain.models import build_model

    shape = {"depth": blocks, "width": 64, "heads": 4, "context": 64}
    model = build_model({"name": "gpt", "classes": 256, "shape": shape})
    tokens = torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(0))
    return model, tokens, blocks


def train(family: str, blocks: int, remat: bool, steps: int) -> dict[str, Any]:
    """Some steps of one network in this process: times, memory, losses."""
    import torch
    import torch.nn.functional as F

    from restrain.models import StagedStatistics
    from restrain.parallel.blocks import apply_remat

    torch.set_num_threads(1)
    model, inputs, blocks = {"resnet": resnet, "transformer": transformer}[family](blocks)
    if remat:
        apply_remat(model)
    model.train()
    staged = StagedStatistics(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    labels = inputs.roll(-1, 1).flatten() if family == "transformer" else torch.arange(len(inputs)) % 10
    gc.collect()
    built, seconds, losses = status("VmRSS"), [], []
    for _ in range(steps):
        began = time.process_time()
        optimizer.zero_grad()
        logits = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, -2), labels)
        loss.backward()
        optimizer.step()
        staged.accumulate()
        staged.commit(1)
        seconds.append(time.process_time() - began)
        losses.append(float(loss.detach()))
    return {
        "family": family,
        "blocks": blocks,
        "remat": remat,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": statistics.median(seconds[1:]),
        "built_mb": built,
        "peak_mb": status("VmHWM"),
        "losses": losses,
    }


def measured(family: str, blocks: int, remat: int, steps: int) -> dict[str, Any]:
    """:func:`train` in a process of its own."""
    command = [sys.executable, __file__, "--one", family, str(blocks), str(remat), str(steps)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=3600).stdout
    return json.loads(said.splitlines()[-1])


def per_block(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each depth but the first: milliseconds and MB a block, over those of the first."""
    first, *others = rows
    found = []
    for row in others:
        blocks = row["blocks"] - first["blocks"]
        milliseconds = 1e3 * (row["seconds"] - first["seconds"]) / blocks
        megabytes = (row["peak_mb"] - first["peak_mb"]) / blocks
        found.append({"blocks": row["blocks"], "ms": milliseconds, "mb": megabytes})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--one", nargs=4, metavar=("FAMILY", "BLOCKS", "REMAT", "STEPS"), help="one process")
    parser.add_argument("--families", default=",".join(SHOWN))
    parser.add_argument("--blocks", default=",".join(map(str, BLOCKS)))
    parser.add_argument("--steps", type=int, default=3, help="of each depth; the first is not timed")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time: what is timed is their own work")
    parser.add_argument("--no-full", action="store_true", help="leave out the 20 steps of the deepest")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.one:
        family, *numbers = args.one
        blocks, remat, steps = map(int, numbers)
        print(json.dumps(train(family, blocks, bool(remat), steps)))
        return 0
    depths = [int(blocks) for blocks in args.blocks.split(",")]
    wanted = {
        f"{family}{', remat' * remat}": (family, remat) for family in args.families.split(",") for remat in (0, 1)
    }
    with ThreadPoolExecutor(args.jobs) as pool:
        # The longest first, so that none is left over at the end.
        full = (
            {}
            if args.no_full
            else {
                family: pool.submit(measured, family, FULL[family], 0, FULL_STEPS)
                for family in args.families.split(",")
            }
        )
        tasks = {
            (name, blocks): pool.submit(measured, family, blocks, remat, args.steps)
            for blocks in reversed(depths)
            for name, (family, remat) in wanted.items()
        }
    results: dict[str, Any] = {}
    for name in wanted:
        series = [tasks[name, blocks].result() for blocks in depths]
        results[name] = {"depths": series, "per_block": per_block(series)}
    for family, one in full.items():
        results[f"{family}, {FULL_STEPS} steps"] = one.result()
    rows = [
        [name, f"{row['blocks']:,}", f"{row['seconds']:.2f}", f"{row['peak_mb']:,.0f}"]
        for name, found in results.items()
        for row in found.get("depths", [found])
    ]
    reporting.table(["", "blocks", "s a step", "peak MB"], rows)
    reporting.write(args.json, {k: v for k, v in vars(args).items() if k != "one"}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
