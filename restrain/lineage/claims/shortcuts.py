"""Claim 7: whatever is done to the shortcut hurts; the identity is best."""

from __future__ import annotations

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome

# Table 1 of the paper, with its constants.
JOINS = {
    "identity": "{name: add}",
    "scale 0.5": "{name: scale, shortcut: 0.5, branch: 0.5}",
    "exclusive gate": "{name: exclusive_gate, bias: -6}",
    "shortcut gate": "{name: shortcut_gate, bias: -6}",
    "1x1 convolution": "{name: conv1x1}",
    "dropout 0.5": "{name: dropout, rate: 0.5}",
}


def run(bench: Bench) -> Outcome:
    """ResNet-56 under each join of the table."""
    numbers, curves, commands = {}, [], []
    for name, join in JOINS.items():
        one = bench.train("digits_resnet56", f"model.join={join}", "model.zero_init=false")
        numbers[f"training loss, {name}"] = one.loss
        numbers[f"error on held-out digits, {name}, %"] = 100.0 - one.metrics["eval/top1"]
        curves.append(Line(name, *one.by_epoch()))
        commands.append(one.command)
    figure = lines("Modulated shortcuts, ResNet-56", "epoch", "training loss", curves, log=True)
    return Outcome(numbers, figure, tuple(commands))


CLAIM = Claim(
    number=7,
    title="Identity shortcuts are best",
    text="Any modulation of the shortcut (scaling, gates, a 1x1 convolution, dropout) makes optimisation harder, "
    "though gates and convolutions could represent the identity.",
    source="He et al. 2016 (arXiv:1603.05027), table 1 (there: ResNet-110 on CIFAR-10)",
    short="ResNet-56 on the digits, 15 epochs, under each of the six joins; branches start as in the paper",
    expected="Each of the five modulated nets ends at a higher training loss than the one with identities.",
    checks=tuple(
        Check(f"training loss, {name}", ">", "training loss, identity") for name in JOINS if name != "identity"
    ),
    run=run,
    long=tuple(f"restrain train cifar10_resnet110 'model.join={join}'" for join in JOINS.values()),
)
