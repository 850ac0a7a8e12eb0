"""Checkpoints between layouts: every layout saves what one process saves, loads what one process saved and goes on with
its losses, and goes on from its own to the last bit.

``python -m tests.parallel.resume [--json FILE]`` runs the matrix (part of ``make parity``): three runs a layout and
world, not one for each pair of them; test_resume.py runs 12 pairs.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import reporting
from restrain.run import checkpoint
from restrain.run.folder import RunFolder
from tests import worlds
from tests.parallel import parity
from tests.parallel.parity import Bench, compared, distance

LAST, HALF, EARLY = parity.STEPS, parity.STEPS // 2, parity.STEPS // 4
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {  # name -> worlds, overrides
    "single": ((1,), ()),
    "ddp": ((1, 2, 4), ("parallel.strategy=ddp",)),
    "fsdp": ((1, 2, 4), ("parallel.strategy=fsdp",)),
    "hsdp, groups of 2": ((4,), ("parallel.strategy=hsdp", "parallel.shard=2")),
    "tensor 2": ((2,), ("parallel.tensor=2",)),
    "tensor 4": ((4,), ("parallel.tensor=4",)),
    "tensor 2 x ddp": ((4,), ("parallel.tensor=2", "parallel.strategy=ddp")),
    "tensor 2 x fsdp": ((4,), ("parallel.tensor=2", "parallel.strategy=fsdp")),
    "zero1": ((1, 2, 4), ("parallel.strategy=zero1",)),
    "zero2": ((1, 2, 4), ("parallel.strategy=zero2",)),
    "zero3": ((1, 2, 4), ("parallel.strategy=zero3",)),
}
# What is trained: a ResNet whose BatchNorm has running statistics, with the momentum of SGD; transformers with it and
# with the two moments of AdamW. All have an EMA.
SGD = "optimizer={name: sgd, lr: 0.01, momentum: 0.9, weight_decay: 1.0e-4}"
SUBJECTS: dict[str, tuple[str, ...]] = {
    "resnet, sgd": (*parity.MODELS["resnet"], SGD),
    "vit, sgd": (*parity.MODELS["vit"], SGD),
    "gpt, adamw": (
        *(word for word in parity.MODELS["gpt"] if not word.startswith("optimizer")),
        "optimizer.lr=0.001",
    ),
}
# Interventions of the canonical run, after its fifth step: what was written is changed, and allowed to be.
CHANGED = ("optimizer.lr=0.002", "batch.global=32")


@dataclass(frozen=True)
class Case:
    """What is trained, and in which precision."""

    subject: str
    precision: str

    @property
    def words(self) -> list[str]:
        common = [*parity.COMMON, f"precision={self.precision}", f"checkpoint.every={EARLY}st", "checkpoint.keep=9"]
        return [*SUBJECTS[self.subject], *common, f"batch.global={parity.BATCH}", f"batch.group={parity.GROUP}"]

    @property
    def by_kind(self) -> bool:
        """What differences are relative to."""
        return self.precision == "fp32"

    def beyond(self, found: dict[str, float]) -> dict[str, float]:
        """Differences larger than their bounds.

        AdamW divides by the root of the squares: where a gradient is next to nothing, as of a key's bias, its steps are
        made of rounding. So in fp32 its weights may be further apart than its losses and its moments.
        """
        limits = dict.fromkeys(found, parity.BOUNDS[self.precision])
        if (self.subject, self.precision) == ("gpt, adamw", "fp32"):
            limits |= {"param": 1e-4, "ema": 1e-4}
        return {kind: far for kind, far in found.items() if not far <= limits[kind]}

    def __str__(self) -> str:
        return f"{self.subject.replace(', ', '-')}-{self.precision}"


@dataclass(frozen=True)
class Place:
    """A layout on so many ranks."""

    layout: str
    world: int

    @property
    def words(self) -> list[str]:
        return list(LAYOUTS[self.layout][1])

    @property
    def precision(self) -> str:
        """fp64, where the layout has it."""
        return "fp32" if self.layout.startswith("zero") else "fp64"

    @property
    def cases(self) -> list[Case]:
        """BatchNorm is not cut over a tensor group; in fp32 a ReLU may make another run of a ResNet's."""
        images = "vit, sgd" if self.precision == "fp32" or "tensor" in self.layout else "resnet, sgd"
        return [Case(images, self.precision), Case("gpt, adamw", self.precision)]

    def __str__(self) -> str:
        return f"{self.layout.replace(' ', '').replace(',', '-')}-on-{self.world}"


ALONE = Place("single", 1)


def places() -> list[Place]:
    return [Place(layout, world) for layout, (sizes, _) in LAYOUTS.items() for world in sizes]


def pairs(count: int = 12, seed: int = 7) -> list[tuple[Place, Place]]:
    """Some pairs of different places; the same ones each time."""
    return random.Random(seed).sample(list(itertools.permutations(places(), 2)), count)


class Matrix:
    """The runs of a matrix, below one folder; each is made once."""

    def __init__(self, folder: Path):
        self.bench = Bench(folder)

    def whole(self, case: Case, place: Place) -> Path:
        """All steps in one place, a checkpoint every fifth."""
        return self.bench.run(f"whole-{case}-{place}", [*case.words, *place.words], place.world)

    def canonical(self, case: Case) -> Path:
        """One process, with interventions after its fifth step."""
        allowed = [word for key in CHANGED for word in ("--allow", key.partition("=")[0])]
        return self.again(f"canonical-{case}", self.whole(case, ALONE), EARLY, [*case.words, *CHANGED], ALONE, allowed)

    def again(
        self, name: str, start: Path, step: int, words: list[str], place: Place, options: Sequence[str] = ()
    ) -> Path:
        """A run that was killed after a checkpoint, started again in ``place``."""
        path = self.bench.folder / name
        if not path.exists():
            as_killed(start, path, step)
            ended = self.bench.train(path, [*words, *place.words], place.world, options=options)
            assert set(ended.codes) == {0}, ended.text
        return path

    # ------------------------------------------------------------------------------------------ what a place is held to

    def saves(self, case: Case, place: Place) -> dict[str, float]:
        """Differences of the checkpoints to those of one process, and of the losses up to them."""
        alone, run = self.whole(case, ALONE), self.whole(case, place)
        found = compared(alone, run, case.by_kind)
        for step in (EARLY, HALF):
            for kind, far in distance(worlds.tensors(run, step), worlds.tensors(alone, step), case.by_kind).items():
                found[kind] = max(found[kind], far)
            assert scalars(run, step) == scalars(alone, step)
        return found

    def loads(self, case: Case, place: Place) -> dict[str, float]:
        """Goes on for ten steps from the checkpoint of one process, interventions included."""
        alone = self.canonical(case)
        run = self.again(f"loads-{case}-{place}", alone, HALF, [*case.words, *CHANGED], place)
        changed = {one["key"]: one["at_step"] for one in scalars(run, LAST)["interventions"]}
        assert changed == {key.partition("=")[0]: EARLY for key in CHANGED}
        assert scalars(run, LAST) == scalars(alone, LAST)
        return compared(alone, run, case.by_kind, after=HALF)

    def repeats(self, case: Case, place: Place) -> None:
        """Goes on from its own checkpoint to the last bit."""
        whole = self.whole(case, place)
        run = self.again(f"repeats-{case}-{place}", whole, HALF, case.words, place)
        assert worlds.journal(run) == worlds.journal(whole)
        assert worlds.ledger(run) == worlds.ledger(whole)
        worlds.assert_bit_equal(whole, run, LAST)

    def pair(self, a: Place, b: Place, subject: str = "gpt, adamw") -> tuple[Case, dict[str, float]]:
        """Begins in one place and goes on in the other; against one process."""
        case = Case(subject, "fp32" if "fp32" in (a.precision, b.precision) else "fp64")
        run = self.again(f"pair-{case}-{a}-{b}", self.whole(case, a), HALF, case.words, b)
        return case, compared(self.whole(case, ALONE), run, case.by_kind)


def as_killed(run: Path, copy: Path, step: int) -> None:
    """What would have been left of a run, had it been killed right after the checkpoint of a step was committed, its
    journals ahead of it."""
    shutil.copytree(run, copy)
    folder = copy / "checkpoints"
    for path in folder.glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    checkpoint.point(folder, "LATEST", step)
    if (folder / "BEST").exists() and checkpoint.pointed(folder, "BEST") is None:
        (folder / "BEST").unlink()
    RunFolder(copy).set_state("running")


def scalars(run: Path, step: int) -> dict[str, Any]:
    """The numbers of a checkpoint that are no measurements."""
    with checkpoint.Reader(run / "checkpoints" / f"step-{step}") as reader:
        return {key: value for key, value in reader.scalars.items() if key not in ("best", "tracker")}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the matrix to this file, anew with every row")
    parser.add_argument("--only", default="", help="layouts that have this in their name")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    worlds.preload("tests.parallel.engines")
    todo = [(place, case) for place in places() if args.only in place.layout for case in place.cases]
    rows, began = dict[tuple[Place, Case], dict[str, Any]](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        matrix = Matrix(Path(folder))
        for case in dict.fromkeys(case for _, case in todo):
            matrix.canonical(case)
        for future in as_completed([pool.submit(_row, matrix, place, case) for place, case in todo]):
            place, case, row = future.result()
            rows[place, case] = row
            print(f"{len(rows)} of {len(todo)}: {place}, {case}: saves {max(row['saves'].values()):.1e}, ", end="")
            print(f"loads {max(row['loads'].values()):.1e}, bit-equal", flush=True)
            done = [rows[key] for key in todo if key in rows]
            minutes = (time.monotonic() - began) / 60
            if args.json:
                results = {"rows": len(todo), "minutes": minutes, "interventions": CHANGED}
                reporting.write(args.json, vars(args), results, done)
    wrong = [key for key, row in rows.items() if any(key[1].beyond(row[did]) for did in ("saves", "loads"))]
    print(f"{len(done)} rows in {minutes:.1f} minutes, {len(wrong)} beyond their bounds")
    return int(bool(wrong))


def _row(matrix: Matrix, place: Place, case: Case) -> tuple[Place, Case, dict[str, Any]]:
    began = time.monotonic()
    saves, loads = matrix.saves(case, place), matrix.loads(case, place)
    matrix.repeats(case, place)
    row = asdict(place) | asdict(case) | {"saves": saves, "loads": loads, "bit_equal": True}
    return place, case, row | {"seconds": time.monotonic() - began}


if __name__ == "__main__":
    sys.exit(main())
