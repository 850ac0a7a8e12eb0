# ruff: noqa: E501  (a paragraph is longer than a line)
"""What parallel.remat and parallel.compile cannot do."""

from __future__ import annotations

from collections.abc import Callable

from tests.bad_input.harness import Case, Outcome, Place, show


def _check(*argv: str) -> Callable[[Place], Outcome]:
    def do(place: Place) -> Outcome:
        return place.cli("check", "digits_resnet20", "--no-run", *argv)

    return do


REMAT = [
    Case(
        "A way to recompute that does not exist",
        "command line: parallel.remat = evry=3 is not one of none, block, every=4 (segments of 4 blocks), sqrt, or budget=12GiB.",
        2,
        "Write one of the five forms.",
        show("digits_resnet20", "parallel.remat=evry=3"),
    ),
    Case(
        "A segment of no blocks",
        "command line: parallel.remat = every=0 has segments of 0 blocks; every=1 recomputes each block on its own, as block does.",
        2,
        "Write the number of blocks of a segment.",
        show("digits_resnet20", "parallel.remat=every=0"),
    ),
    Case(
        "A memory budget without a unit",
        "command line: parallel.remat = budget=12 has no unit that is known here: write MiB or GiB, such as budget=12GiB.",
        2,
        "Write MiB or GiB.",
        show("digits_resnet20", "parallel.remat=budget=12"),
    ),
    Case(
        "A memory budget that nothing can keep",
        "parallel.remat = budget=1MiB is too small: with every block recomputed a process needs 6.16 MB for 64 rows, of which 3.24 MB are weights, gradients and what the optimizer keeps. Lower batch.micro, or give more memory.",
        2,
        "Give more memory, or compute fewer rows at a time.",
        _check("parallel.remat=budget=1MiB", "precision=fp32", "parallel.accelerator=cpu"),
    ),
    Case(
        "One segment of all blocks",
        "parallel.remat = every=9 does nothing for memory: ResNet has 9 residual blocks, and all of them in one segment are kept again while it is recomputed. Use sqrt, or a smaller k.",
        2,
        "Use sqrt.",
        _check("parallel.remat=every=9"),
    ),
    Case(
        "Segments of more blocks than any network has",
        "parallel.remat = every=1000000 does nothing for memory: ResNet has 9 residual blocks, and all of them in one segment are kept again while it is recomputed. Use sqrt, or a smaller k.",
        2,
        "Take fewer blocks.",
        _check("parallel.remat=every=1000000"),
    ),
    Case(
        "One graph of the network, and blocks to recompute",
        "command line: parallel.compile = step is one graph, whose compiler decides what it computes again, and parallel.remat = block says which blocks are. Use parallel.compile=block, or parallel.remat=none.",
        2,
        "Compile by block, or recompute nothing.",
        show("digits_resnet20", "parallel.compile=step", "parallel.remat=block"),
    ),
    Case(
        "One graph of the network, and blocks that are skipped",
        "command line: parallel.compile = step is one graph, and model.drop_path.mode = batch calls other blocks in every step, each time a graph of its own. Use parallel.compile=block, or model.drop_path.mode=sample.",
        2,
        "Compile by block.",
        show("digits_resnet20", "parallel.compile=step", "model.drop_path={rate: 0.2, mode: batch}"),
    ),
    Case(
        "One graph of the network, and parameters gathered by block",
        "command line: parallel.compile = step is one graph, and parallel.strategy = fsdp communicates between and inside of the blocks. Use parallel.compile=block.",
        2,
        "Compile by block.",
        show("digits_resnet20", "parallel.compile=step", "parallel.strategy=fsdp"),
    ),
    Case(
        "One graph of the network, and probes",
        "command line: track.probe = 100st reads inside of the blocks, which parallel.compile = step fuses: the steps that are read would compute other last bits. Set one of them to null or none.",
        2,
        "Leave one of them out.",
        show("digits_resnet20", "parallel.compile=step", "track.probe=100st"),
    ),
]
