"""Claim 13: highway networks, gated and deep: better than plain ones, not better than their own shallow version."""

from __future__ import annotations

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome

DEPTHS = (20, 50, 100)
JOINS = {"highway": "{name: gate, bias: -3}", "plain": "{name: none}", "residual": "{name: add}"}


def run(bench: Bench) -> Outcome:
    """Fully connected nets of 50 units at three depths under three joins."""
    numbers, curves, commands = {}, [], []
    for colour, (kind, join) in enumerate(JOINS.items()):
        for depth in DEPTHS if kind != "residual" else DEPTHS[1:2]:
            shape = f"model.shape={{depth: {depth}, width: 50}}"
            one = bench.train("digits_resnet56", "model.name=highway_mlp", shape, f"model.join={join}")
            numbers[f"loss of {kind}-{depth}"] = one.loss
            curves.append(Line(f"{kind}-{depth}", *one.by_epoch(), dashed=kind == "plain", colour=colour))
            commands.append(one.command)
    figure = lines("Highway, plain and residual perceptrons", "epoch", "training loss", curves, log=True)
    return Outcome(numbers, figure, tuple(commands))


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
    long=(
        "restrain train cifar10_resnet20 model.name=highway_19",
        "restrain train cifar10_resnet20 model.name=highway_32",
    ),
)
