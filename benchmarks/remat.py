"""What each mode of ``parallel.remat`` keeps and computes again, of ResNet-1202 and of a transformer of 1,000 blocks.

``python benchmarks/remat.py [--families resnet,transformer] [--json FILE]``. Each mode is a process of its own, one at
a time, with one thread. It *predicts* the bytes of activations as ``restrain check`` does, on the meta device
(``restrain.insight.cost.saved_bytes``), and measures them twice in real passes: *held*, the storages that autograd
keeps between forward and backward, and those of the segment that holds most while it is computed again; and
*allocated*, the most that torch's allocator has given out at one time during a pass forward and backward, over the
weights and gradients that were there before. (Resident memory says less: glibc keeps freed pieces of these sizes.)
FLOPs are counted by torch. Gradients and BatchNorm's statistics are hashed.
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
        "held": held(model, inputs),
        "allocated": allocated(lambda: model(inputs).square().mean().backward()),
        "digest": digest.hexdigest()[:16],
    }


def held(model: Any, inputs: Any) -> int:
    """Bytes that autograd really keeps: between forward and backward, and of the segment or block that keeps most while
    it is computed again."""
    from restrain.models import residual_blocks

    given: list[tuple[Any, tuple[Any, ...]]] = []
    hooks = [
        block.register_forward_pre_hook(lambda block, arguments: given.append((block, arguments)))
        for _, block in residual_blocks(model)
        if block.remat or block.segment
    ]
    own = [*model.parameters(), *model.buffers(), inputs]
    between = saved(lambda: model(inputs), own)
    for hook in hooks:
        hook.remove()
    inside = [
        saved(lambda f=block.together if block.segment else block.block_forward, a=given: f(*a), [*own, given[0]])
        for block, given in given
    ]
    return between + max(inside, default=0)


def saved(run: Any, known: Sequence[Any]) -> int:
    """Bytes of the storages that autograd keeps of a call, those of ``known`` apart."""
    import torch

    own = {tensor.untyped_storage().data_ptr() for tensor in known}
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        if (address := tensor.untyped_storage().data_ptr()) not in own:
            found[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    total = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    del out
    return total


def allocated(run: Any) -> int:
    """The most bytes that torch's allocator has given out at one time during a call, over what it had before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda change: change[0])
    return max(itertools.accumulate(change for _, change in changes))


HEADER = ("", "remat", "predicted MB", "held MB", "off", "allocated MB", "off", "FLOPs", "gradients, statistics")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    off = [f"{100 * (row[kind] / row['predicted'] - 1):+.1f} %" for kind in ("held", "allocated")]
    mb = {kind: f"{row[kind] / 1e6:,.1f}" for kind in ("predicted", "held", "allocated")}
    same = "equal" if row["equal"] else "other"
    name = f"{depth.SHOWN[row['family']]}, {row['blocks']:,} blocks"
    return [
        name,
        row["remat"],
        mb["predicted"],
        mb["held"],
        off[0],
        mb["allocated"],
        off[1],
        f"x {row['flops_ratio']:.3f}",
        same,
    ]


def measured(families: Sequence[str], blocks: int | None, write: Any) -> list[dict[str, Any]]:
    """:func:`one` for each mode in a process of its own; ``write`` is given the rows after each of them."""
    rows: list[dict[str, Any]] = []
    for family in families:
        for remat in MODES:
            command = [sys.executable, __file__, "--one", family, str(blocks or depth.FULL[family]), remat]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=3600)
            if ended.returncode:
                sys.exit(f"{family}, {remat}: ended with code {ended.returncode}\n{ended.stderr}")
            row = json.loads(ended.stdout.splitlines()[-1])
            rows.append(row)
            first = next(other for other in rows if other["family"] == family)
            row["equal"] = row["digest"] == first["digest"]
            row["flops_ratio"] = row["flops"] / first["flops"]
            print("  ".join(cells(row)), flush=True)
            write(rows)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--one", nargs=3, metavar=("FAMILY", "BLOCKS", "REMAT"), help="one mode, in this process")
    parser.add_argument("--families", default=",".join(depth.SHOWN))
    parser.add_argument("--blocks", type=int, help="instead of 600 (ResNet-1202) and 1,000")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.one:
        family, blocks, remat = args.one
        print(json.dumps(one(family, int(blocks), remat)))
        return 0
    settings = {"families": args.families, "blocks": args.blocks, "modes": MODES}
    rows = measured(args.families.split(","), args.blocks, lambda rows: reporting.write(args.json, settings, {}, rows))
    reporting.table(HEADER, [cells(row) for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
