"""torch.compile by block and of the whole network over depth: compilations, seconds until the first step is done,
seconds a step, and how far the losses are from those without.

``python benchmarks/compile.py [--json FILE]``. Each measurement is a fresh process with an empty compile cache, so that
what is compiled is compiled there. The GPT of :mod:`depth`, 64 wide, of 64 tokens in batches of 4; SGD with momentum,
fp32, one thread; times are those that the processor spent on the process and on the compilers that it started.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import depth
import reporting

BLOCKS = (4, 8, 16)
MODES = ("none", "block", "step")


def spent() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    times = os.times()
    return sum(times[:4])


def train(mode: str, blocks: int, steps: int) -> dict[str, Any]:
    """Some steps of one network in this process."""
    import torch
    import torch.nn.functional as F
    from torch._dynamo.utils import counters

    from restrain.parallel.blocks import apply_compile, apply_compile_whole

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, tokens, blocks = depth.transformer(blocks)
    model.train()
    if mode != "none":
        {"block": apply_compile, "step": apply_compile_whole}[mode](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, fused=True)
    labels = tokens.roll(-1, 1).flatten()
    seconds, losses = [], []
    for _ in range(steps):
        began, clock = spent(), time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens).flatten(0, -2), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        seconds.append((spent() - began, time.perf_counter() - clock))
    return {
        "mode": mode,
        "blocks": blocks,
        "graphs": counters["stats"]["unique_graphs"],
        "first_step": seconds[0][0],
        "first_step_wall": seconds[0][1],
        "seconds": statistics.median(one for one, _ in seconds[1:]),
        "losses": losses,
    }


def measured(mode: str, blocks: int, steps: int) -> dict[str, Any]:
    """:func:`train` in a process of its own, which finds nothing compiled."""
    command = [sys.executable, __file__, "--one", mode, str(blocks), str(steps)]
    with tempfile.TemporaryDirectory() as cache:
        # Its compilers are its own, so that their time is seen.
        places = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=3600, env={**os.environ, **places}
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--one", nargs=3, metavar=("MODE", "BLOCKS", "STEPS"), help="one process")
    parser.add_argument("--blocks", default=",".join(map(str, BLOCKS)))
    parser.add_argument("--steps", type=int, default=10, help="the first is not timed as a step")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.one:
        mode, blocks, steps = args.one
        print(json.dumps(train(mode, int(blocks), int(steps))))
        return 0
    rows = [measured(mode, int(blocks), args.steps) for blocks in args.blocks.split(",") for mode in MODES]
    plain = {row["blocks"]: row["losses"] for row in rows if row["mode"] == "none"}
    for row in rows:
        pairs = zip(row["losses"], plain[row["blocks"]], strict=True)
        row["loss_difference"] = max(abs(a - b) / abs(b) for a, b in pairs)
    reporting.table(
        ["compile", "blocks", "graphs", "first step s", "s a step", "loss difference"],
        [
            [
                row["mode"],
                str(row["blocks"]),
                str(row["graphs"]),
                f"{row['first_step']:.1f}",
                f"{row['seconds']:.4f}",
                f"{row['loss_difference']:.1e}",
            ]
            for row in rows
        ],
    )
    reporting.write(args.json, {k: v for k, v in vars(args).items() if k != "one"}, {}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
