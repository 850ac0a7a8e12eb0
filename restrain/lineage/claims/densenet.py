"""Claim 14: DenseNet: skips to all later layers, by concatenation."""

from __future__ import annotations

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.claims.degradation import trained
from restrain.lineage.looking import without_weights

# Huang et al. 2016, table 2: millions of parameters of nets for CIFAR.
PARAMETERS = {"cifar_densenet40_k12": 1.0, "cifar_densenet100_k12": 7.0, "cifar_densenetbc100_k12": 0.8}


def run(bench: Bench) -> Outcome:
    """Parameters beside the paper's, and a DenseNet of 40 layers beside plain and residual nets of 44."""
    numbers = {}
    for name, paper in PARAMETERS.items():
        model = without_weights(name=name, classes=10, join={"name": "concat"})
        numbers[f"parameters of {name} over the paper's"] = sum(p.numel() for p in model.parameters()) / 1e6 / paper
    dense = bench.train("digits_resnet56", "model.name=cifar_densenet40_k12", "model.join.name=concat")
    runs = {"DenseNet-40": dense, "plain-44": trained(bench, 44, "none"), "residual-44": trained(bench, 44, "add")}
    numbers |= {f"loss of {name}": one.loss for name, one in runs.items()}
    numbers["held-out accuracy of DenseNet-40, %"] = dense.metrics["eval/top1"]
    curves = [Line(name, *one.by_epoch()) for name, one in runs.items()]
    figure = lines("Concatenated skips", "epoch", "training loss", curves, log=True)
    return Outcome(numbers, figure, tuple(one.command for one in runs.values()))


CLAIM = Claim(
    number=14,
    title="DenseNet",
    text="Each layer of a block reads what all earlier ones have computed, by concatenation: deep nets train, with few "
    "parameters.",
    source="Huang et al. 2016 (arXiv:1608.06993), table 2",
    short="parameters of three sizes; DenseNet-40 (k = 12) on the digits, 15 epochs, beside nets of 44 layers",
    expected="Parameters within 6 % of the paper's (which have one or two digits); a loss below a tenth of the plain "
    "net's, and at least 97 % of the held-out digits.",
    checks=(
        *(Check(f"parameters of {name} over the paper's", ">=", 0.94) for name in PARAMETERS),
        *(Check(f"parameters of {name} over the paper's", "<=", 1.06) for name in PARAMETERS),
        Check("loss of DenseNet-40", "<", "loss of plain-44", 0.1),
        Check("held-out accuracy of DenseNet-40, %", ">=", 97.0),
    ),
    run=run,
    long=("restrain train cifar10_densenetbc100",),
)
