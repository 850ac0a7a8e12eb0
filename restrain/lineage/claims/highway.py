"""Claim 13: highway networks, gated and deep: better than plain ones, not better than their own shallow version."""

from __future__ import annotations

import torch

from restrain.lineage.bench import Bench, Trained
from restrain.lineage.charts import Line, heat, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.looking import of_run, rows_of
from restrain.models.residual import Gate

DEPTHS = (20, 50, 100)
MAPPED = ("highway", 50)
JOINS = {"highway": "{name: gate, bias: -3}", "plain": "{name: none}", "residual": "{name: add}"}


def run(bench: Bench) -> Outcome:
    """Fully connected nets of 50 units at three depths under three joins."""
    numbers, curves, commands, table = {}, [], [], []
    for colour, (kind, join) in enumerate(JOINS.items()):
        for depth in DEPTHS if kind != "residual" else DEPTHS[1:2]:
            one = bench.train("digits_highway50", f"model.shape.depth={depth}", f"model.join={join}", "length=15ep")
            numbers[f"loss of {kind}-{depth}"] = one.loss
            curves.append(Line(f"{kind}-{depth}", *one.by_epoch(), dashed=kind == "plain", colour=colour))
            commands.append(one.command)
            if (kind, depth) == MAPPED:
                table = gates(one)
                numbers[f"mean gate of {kind}-{depth}"] = sum(map(sum, table)) / sum(map(len, table))
    figure = lines("Highway, plain and residual perceptrons", "epoch", "training loss", curves, log=True)
    note = "The map: how far the gates of highway-50 are open to their branch, in each layer and for each digit."
    return Outcome(numbers, figure + heat("Gates", "layer", "digit", table, 0.0, 0.5), tuple(commands), (note,))


@torch.no_grad()
def gates(run: Trained) -> list[list[float]]:
    """The mean of each layer's gate t over the held-out images of each digit, ``table[digit][layer]``."""
    model, found = of_run(run).eval(), []
    x_BCHW, labels_B = rows_of(run.recipe, 360)
    for module in model.modules():
        if isinstance(module, Gate):
            module.register_forward_hook(lambda _module, _inputs, gate_BU: found.append(gate_BU.mean(-1)))
    model(x_BCHW)
    return [[float(gate_B[labels_B == digit].mean()) for gate_B in found] for digit in range(10)]


CLAIM = Claim(
    number=13,
    title="Highway networks",
    text="An LSTM with forget gates unrolled in depth: nets of 20, 50, 100 layers and more train; they beat deep plain "
    "nets, but not their own version of 20 layers.",
    source="Srivastava et al. 2015 (arXiv:1505.00387, arXiv:1507.06228), figure 1",
    short="fully connected nets of 50 units a layer on the digits, 15 epochs: highway and plain at 20, 50 and 100 "
    "layers, residual at 50",
    expected="At 50 and at 100 layers the highway net ends below half of the plain net's loss; its version of 20 "
    "layers is not worse than that of 100.",
    checks=(
        Check("loss of highway-50", "<", "loss of plain-50", 0.5),
        Check("loss of highway-100", "<", "loss of plain-100", 0.5),
        Check("loss of highway-20", "<=", "loss of highway-100"),
    ),
    run=run,
    long=("restrain train digits_highway50", "restrain train digits_highway19"),
)
