"""The same run under every layout: cells of a table, each a run whose journal, ledger and last checkpoint are compared
with those of one process.

``python -m tests.parallel.parity [--json FILE]`` runs all cells (``make parity``); test_parity.py a pairwise subset.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests import worlds

STEPS = 20
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {  # name -> ranks, overrides
    "ddp": (2, ("parallel.strategy=ddp",)),
    "fsdp": (2, ("parallel.strategy=fsdp",)),
    "hsdp 2x2": (4, ("parallel.strategy=hsdp", "parallel.shard=2")),
    "tensor 2": (2, ("parallel.tensor=2",)),
    "tensor 2 x fsdp 2": (4, ("parallel.tensor=2", "parallel.strategy=fsdp")),
    # A group over both ranks: their rows are half of its own.
    "ddp, groups over 2": (2, ("parallel.strategy=ddp",)),
    "fsdp, groups over 2": (2, ("parallel.strategy=fsdp",)),
}
TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows. "
MODELS: dict[str, tuple[str, ...]] = {
    "resnet": ("digits_resnet20",),
    "vit": ("digits_resnet20", "model.name=vit", "model.shape={depth: 3, width: 32, heads: 4, patch: 2}"),
    "gpt": (
        "shakespeare_gpt",
        "model.shape={depth: 3, width: 32, heads: 4, context: 16}",
        "model.transformer={qk_norm: true}",
        "data.context=16",
        "batch.global=48",
        "batch.group=4",
        "optimizer={name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 1.0e-4}",
        "schedule={name: cosine}",
    ),
}
COMMON = (
    "precision=fp64",
    f"length={STEPS}st",
    f"evaluate.every={STEPS}st",
    f"checkpoint.every={STEPS}st",
    "ema={decay: 0.9}",
    "track.wandb.mode=disabled",
    "parallel.threads=1",
    "parallel.accelerator=cpu",
)
# Rows of a batch: 48 divides into 1 and 3 micro-batches on 1, 2 and 4 ranks.
GROUP = 4


@dataclass(frozen=True)
class Cell:
    model: str
    layout: str
    accumulation: int
    clip: bool
    remat: bool

    @property
    def offered(self) -> bool:
        """BatchNorm is not cut over a tensor group; a part of a group is one micro-batch; transformers have none."""
        if "groups" in self.layout:
            return self.model == "resnet" and self.accumulation == 1
        return not (self.model == "resnet" and self.layout.startswith("tensor"))

    def words(self) -> list[str]:
        """The command line without its layout: the global batch is the same in all."""
        group = 48 if "groups" in self.layout else GROUP
        found = [*MODELS[self.model], *COMMON, "batch.global=48", f"batch.group={group}"]
        return [*found, *(["clip=0.5"] if self.clip else [])]

    def placement(self) -> list[str]:
        """What may differ without the run being another one."""
        ranks, words = LAYOUTS[self.layout]
        data = ranks // 2 if "tensor" in self.layout else ranks
        micro = 48 // data // self.accumulation
        words = [*words, *([] if "groups" in self.layout else [f"batch.micro={micro}"])]
        return [*words, *(["parallel.remat=block"] if self.remat else [])]


def all_cells() -> Iterator[Cell]:
    for parts in itertools.product(MODELS, LAYOUTS, (1, 3), (False, True), (False, True)):
        yield Cell(*parts)


def pairwise(cells: Iterable[Cell]) -> list[Cell]:
    """Few cells in which every pair of values of two axes is met; greedy, and the same each time."""
    left = [cell for cell in cells if cell.offered]
    pairs = {cell: set(itertools.combinations(sorted(asdict(cell).items(), key=str), 2)) for cell in left}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(left, key=lambda cell: len(pairs[cell] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


class Bench:
    """Runs below one folder; that of one process is made once for all cells that it is compared with."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "text").mkdir(parents=True, exist_ok=True)
        (folder / "text" / "tinyshakespeare.txt").write_text(TEXT * 30)

    def run(self, name: str, words: list[str], ranks: int) -> Path:
        path = self.folder / name
        if not path.exists():
            recipe, *overrides = words
            if recipe == "shakespeare_gpt":
                overrides.append(f"data.root={self.folder / 'text'}")
            ended = worlds.train(path, overrides, ranks, recipe=recipe, timeout=300.0)
            assert set(ended.codes) == {0}, ended.text
        return path

    def differences(self, cell: Cell) -> dict[str, float]:
        """Largest relative difference to one process: losses, gradient norms, and each kind of tensor."""
        alone = self.run(f"alone-{cell.model}-{cell.clip}-{'groups' in cell.layout}", cell.words(), 1)
        name = "-".join(str(value).replace(" ", "") for value in asdict(cell).values())
        run = self.run(name, [*cell.words(), *cell.placement()], LAYOUTS[cell.layout][0])
        assert worlds.ledger(run) == worlds.ledger(alone), "other samples than one process"
        return compared(alone, run)


def compared(alone: Path, run: Path) -> dict[str, float]:
    """Of two runs: ``loss``, ``norm`` over the steps; of the last checkpoint each kind, relative to its largest."""
    found = {}
    mine, theirs = worlds.journal(run), worlds.journal(alone)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for short, metric in (("loss", "train/loss"), ("norm", "train/grad_norm"), ("eval", "eval/loss")):
        pairs = [(a[metric], b[metric]) for a, b in zip(mine, theirs, strict=True) if metric in b]
        found[short] = max(abs(a - b) / abs(b) for a, b in pairs)
    left, right = worlds.tensors(run, STEPS), worlds.tensors(alone, STEPS)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        kind, other = name.rpartition("|")[2], right[name].double()
        scale = max(other.abs().max().item(), 1e-3) if other.numel() else 1.0
        far = (tensor.double() - other).abs().max().item() / scale if other.numel() else 0.0
        found[kind] = max(found.get(kind, 0.0), far)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--only", default="", help="cells whose layout or model has this in its name")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for cell in all_cells():
            if args.only not in cell.layout + cell.model:
                continue
            found = bench.differences(cell) if cell.offered else None
            rows.append(asdict(cell) | {"differences": found})
            print(cell, "not offered" if found is None else f"{max(found.values()):.1e}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    worst = max(max(row["differences"].values()) for row in rows if row["differences"])
    print(f"{len(rows)} cells, largest difference {worst:.1e}")
    return int(worst > 1e-10)


if __name__ == "__main__":
    sys.exit(main())
