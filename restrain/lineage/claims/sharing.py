"""Claim 16: a ResNet whose blocks share their weights is a recurrent net, and works nearly as well."""

from __future__ import annotations

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.claims.degradation import trained
from restrain.lineage.looking import without_weights

NAMES = {"own weights": "cifar_resnet56", "shared weights": "cifar_shared_resnet56"}


def run(bench: Bench) -> Outcome:
    """ResNet-56 with and without sharing the convolutions of a stage over its blocks."""
    numbers, curves, commands = {}, [], []
    runs = {
        "own weights": trained(bench, 56, "add"),
        "shared weights": bench.train("digits_resnet56", f"model.name={NAMES['shared weights']}"),
    }
    for kind, one in runs.items():
        model = without_weights(name=NAMES[kind], classes=10, in_chans=1)
        numbers[f"parameters, {kind}"] = sum(parameter.numel() for parameter in model.parameters())
        numbers[f"training loss, {kind}"] = one.loss
        numbers[f"held-out accuracy, {kind}, %"] = one.metrics["eval/top1"]
        numbers[f"error on held-out digits, {kind}, %"] = 100.0 - one.metrics["eval/top1"]
        curves.append(Line(kind, *one.by_epoch()))
        commands.append(one.command)
    numbers["accuracy lost by sharing, %"] = (
        numbers["held-out accuracy, own weights, %"] - numbers["held-out accuracy, shared weights, %"]
    )
    return Outcome(
        numbers, lines("Shared weights, ResNet-56", "epoch", "training loss", curves, log=True), tuple(commands)
    )


CLAIM = Claim(
    number=16,
    title="Shared weights: a recurrent net",
    text="A ResNet whose blocks share their weights is a shallow recurrent network unrolled in time, and works nearly "
    "as well with a fraction of the parameters.",
    source="Liao and Poggio 2016 (arXiv:1604.03640)",
    short="ResNet-56 on the digits, 15 epochs: own weights, and the convolutions of each stage shared by its blocks",
    expected="Less than a quarter of the parameters, and at most 1.5 percentage points of held-out accuracy lost.",
    checks=(
        Check("parameters, shared weights", "<", "parameters, own weights", 0.25),
        Check("accuracy lost by sharing, %", "<=", 1.5),
        Check("held-out accuracy, shared weights, %", ">=", 97.0),
    ),
    run=run,
    long=("restrain train cifar10_resnet56", "restrain train cifar10_shared_resnet56"),
)
