# ruff: noqa: E501  (a paragraph is longer than a line)
"""Steps that cannot be timed: layouts that cannot be, and a sweep inside of a world."""

from __future__ import annotations

from tests.bad_input.harness import Case, Outcome, Place


def _bench(*words: str, world: int = 1):
    def do(place: Place) -> Outcome:
        return place.cli("bench", "step", *words, "--steps", "1", "--warm-up", "0", world=world)

    return do


STEP = [
    Case(
        "A step for a number of processes that cannot share it",
        "3 processes cannot share a step of batch.global=64 in groups of batch.group=16: there are 4 groups, and each process takes the same number of whole ones, or as large a part of one as the others. Numbers of processes that work: 1, 2, 4; with groups that span processes, 8, 16, 32, 64. Otherwise change batch.group or batch.global (that defines another run).",
        2,
        "Take one of the numbers, or another batch.",
        _bench("digits_resnet20", "parallel.devices=3"),
    ),
    Case(
        "A sweep by one of several processes",
        "--sweep starts processes of its own, and this is one of 2 that restrain has started. Start the command once, on one machine.",
        2,
        "Leave torchrun or srun away.",
        _bench("digits_resnet20", "--sweep", world=2),
    ),
    Case(
        "A step of a network that is cut as it cannot be",
        "parallel.tensor=2: the ranks of a tensor group see the same rows, and BatchNorm is not cut over them. Tensor parallelism is for transformers; set parallel.tensor=1.",
        2,
        "Take a layout that goes with BatchNorm.",
        _bench("digits_resnet20", "parallel.tensor=2", world=2),
    ),
    Case(
        "A step in float8 on a CPU",
        "precision=fp8 needs a GPU that multiplies float8, from compute capability 8.9 on (L4, L40S, RTX 4090, H100 and later), and this is a CPU. Take bf16, or auto.",
        2,
        "Take another number format, or a machine with such a GPU.",
        _bench("digits_resnet20", "precision=fp8", "parallel.accelerator=cpu"),
    ),
    Case(
        "Figures of a step for a folder",
        "--json .: name a file in a folder that exists.",
        2,
        "Name the file; nothing was measured.",
        _bench("digits_resnet20", "--json", "{dir}"),
    ),
    Case(
        "A step of a folder that is no run",
        ". is a folder, but not of a run: it has no recipe.lock.yaml. Name a recipe, a file or a run folder.",
        2,
        "Name the run's own folder.",
        _bench("{dir}"),
    ),
]
