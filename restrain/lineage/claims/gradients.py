"""Claim 2: degradation is no vanishing gradient: with BatchNorm, those of a deep plain net are healthy."""

from __future__ import annotations

import numpy as np

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.claims.degradation import KINDS, trained
from restrain.run import probes

MOMENTS = ("at the start", "over training", "at the end")
SMALLEST, LARGEST = 0.01, 100.0  # of the last block's gradient


def run(bench: Bench) -> Outcome:
    """Norm of the loss's gradient behind each join of all three nets, as their runs have read it."""
    numbers, curves, commands = {}, [], []
    for colour, (kind, (join, words)) in enumerate(KINDS.items()):
        one = trained(bench, 56, join, *words)
        commands.append(one.command)
        norms = probes.read(one.path / "probes.jsonl").values["grad"]  # [joins, readings]
        to_last = norms / norms[-1]
        smallest, largest = to_last.min(axis=0), to_last.max(axis=0)
        for moment, pick in zip(MOMENTS, (lambda x: x[0], np.median, lambda x: x[-1]), strict=True):
            numbers[f"smallest / last gradient of {kind}, {moment}"] = float(pick(smallest))
            numbers[f"largest / last gradient of {kind}, {moment}"] = float(pick(largest))
        blocks = list(range(1, len(norms) + 1))
        middle = norms.shape[1] // 2
        for name, at, dashed in (("start", 0, True), ("halfway", middle, True), ("end", -1, False)):
            curves.append(Line(f"{kind}, {name}", blocks, norms[:, at].tolist(), dashed=dashed, colour=colour))
    figure = lines("Gradient norm by depth", "block", "norm of dE/dx after the block", curves, log=True)
    return Outcome(numbers, figure, tuple(commands), tuple(notes(numbers)))


def notes(numbers: dict[str, float]) -> list[str]:
    """What the plain net's gradients do, where they leave the bounds."""
    found = []
    grown = numbers["largest / last gradient of plain, at the start"]
    if grown > LARGEST:
        found.append(
            f"At the start the gradient of the plain net grows towards the input, {grown:.3g} times over its blocks: "
            f"with BatchNorm and without skips it is large rather than small (Yang et al. 2019, arXiv:1902.08129)."
        )
    shrunk = numbers["smallest / last gradient of plain, over training"]
    if shrunk < SMALLEST:
        found.append(
            f"In the course of training the plain net's gradient falls, to {shrunk:.2g} of the last block's in a "
            f"median reading: the small form, which cannot learn, does show small gradients in its early blocks."
        )
    return found


CLAIM = Claim(
    number=2,
    title="Not vanishing gradients",
    text="The difficulty of deep plain nets is not that gradients vanish: with normalisation they have healthy norms "
    "at every depth.",
    source="He et al. 2015 (arXiv:1512.03385), section 4.1",
    short="norm of the gradient after each of the 27 blocks of plain-56 and ResNet-56 (branches as published, and from "
    "zero) on the digits, read every 11 steps of their training: the first reading, the median of all and the last one",
    expected="In all three nets and at all three moments no block's gradient is smaller than a hundredth of the last "
    "block's, nor larger than a hundred times that.",
    checks=tuple(
        check
        for kind in KINDS
        for moment in MOMENTS
        for check in (
            Check(f"smallest / last gradient of {kind}, {moment}", ">=", SMALLEST),
            Check(f"largest / last gradient of {kind}, {moment}", "<=", LARGEST),
        )
    ),
    run=run,
    long=("restrain train cifar10_plain56 track.probe=1ep", "restrain train cifar10_resnet56 track.probe=1ep"),
)
