"""What each mode of ``parallel.remat`` keeps and computes again, of ResNet-1202 and of a transformer of 1,000 blocks.

``python benchmarks/remat.py [--families resnet,transformer] [--json FILE]``. Each mode is a process of its own, one at
a time, with one thread. It *predicts* the bytes of activations as ``restrain check`` does, on the meta device
(``restrain.insight.cost.saved_bytes``), and measures the most that torch's allocator has given out at one time during
a pass forward and backward, over the weights and gradients that were there before. (Resident memory says less: glibc
keeps freed pieces of these sizes.) FLOPs are counted by torch. Gradients and BatchNorm's statistics are hashed. The
rows of a file that is there already are kept, but for the families and modes that are measured.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import depth
import reporting

MODES = ("none", "block", "every=4", "every=16", "sqrt")


def recompute(model: Any, inputs: Any, remat: str) -> None:
    """Apply a mode of ``parallel.remat``."""
    from restrain.insight.cost import weightless
    from restrain.models import residual_blocks
    from restrain.models.chains import chains
    from restrain.parallel.blocks import apply_remat, apply_segments
    from restrain.recipe.rematerialise import Remat

    wanted = Remat.parse(remat)
    if wanted.mode == "block":
        apply_remat(model)
    elif wanted.mode != "none":
        every = wanted.every or round(math.sqrt(len(residual_blocks(model))))
        apply_segments(model, chains(weightless(model), inputs.to("meta")), every)


def one(family: str, blocks: int, remat: str) -> dict[str, Any]:
    """Passes forward and backward in this process: FLOPs, bytes, and a digest of gradients and statistics."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from restrain.insight.cost import saved_bytes, weightless
    from restrain.models import StagedStatistics

    torch.set_num_threads(1)
    model, inputs, blocks = {"resnet": depth.resnet, "transformer": depth.transformer}[family](blocks)
    model.train()
    recompute(model, inputs, remat)
    predicted = saved_bytes(weightless(model), inputs.to("meta"))
    staged = StagedStatistics(model)
    with FlopCounterMode(display=False) as counter:
        model(inputs).square().mean().backward()
    staged.accumulate()
    digest = hashlib.sha256()
    for tensor in (*(p.grad for p in model.parameters()), *([staged.sums] if staged.norms else [])):
        assert tensor is not None
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return {
        "family": family,
        "blocks": blocks,
        "remat": remat,
        "flops": counter.get_total_flops(),
        "predicted": predicted,
        "allocated": allocated(lambda: model(inputs).square().mean().backward()),
        "digest": digest.hexdigest()[:16],
    }


def allocated(run: Any) -> int:
    """The most bytes that torch's allocator has given out at one time during a call, over what it had before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda change: change[0])
    return max(itertools.accumulate(change for _, change in changes))


HEADER = ("", "remat", "predicted MB", "measured MB", "off", "FLOPs", "gradients, statistics")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    return [
        f"{depth.SHOWN[row['family']]}, {row['blocks']:,} blocks",
        row["remat"],
        f"{row['predicted'] / 1e6:,.1f}",
        f"{row['allocated'] / 1e6:,.1f}",
        f"{100 * (row['allocated'] / row['predicted'] - 1):+.1f} %",
        f"x {row['flops_ratio']:.3f}",
        "equal" if row["equal"] else "other",
    ]


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of the modes, each beside the one of its family that recomputes nothing."""
    rows = sorted(rows, key=lambda row: (list(depth.SHOWN).index(row["family"]), MODES.index(row["remat"])))
    first = {row["family"]: row for row in rows if row["remat"] == "none"}
    for row in rows:
        if row["family"] in first:
            row["equal"] = row["digest"] == first[row["family"]]["digest"]
            row["flops_ratio"] = row["flops"] / first[row["family"]]["flops"]
    return rows


def measured(family: str, blocks: int, remat: str) -> dict[str, Any]:
    """:func:`one` in a process of its own."""
    command = [sys.executable, __file__, "--one", family, str(blocks), remat]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if ended.returncode:
        sys.exit(f"{family}, {remat}: ended with code {ended.returncode}\n{ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--one", nargs=3, metavar=("FAMILY", "BLOCKS", "REMAT"), help="one mode, in this process")
    parser.add_argument("--families", default=",".join(depth.SHOWN))
    parser.add_argument("--modes", default=",".join(MODES), help="none is what the others are compared with")
    parser.add_argument("--blocks", type=int, help="instead of 600 (ResNet-1202) and 1,000")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.one:
        family, blocks, remat = args.one
        print(json.dumps(one(family, int(blocks), remat)))
        return 0
    families, modes = args.families.split(","), args.modes.split(",")
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.exists() else []
    rows = [row for row in rows if row["family"] not in families or row["remat"] not in modes]
    for family in families:
        for remat in modes:
            rows.append(measured(family, args.blocks or depth.FULL[family], remat))
            rows = compared(rows)
            reporting.write(args.json, vars(args), {}, rows)
    reporting.table(HEADER, [cells(row) for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
