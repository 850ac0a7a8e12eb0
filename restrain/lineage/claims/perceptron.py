"""Claim 11: skip connections in a multilayer perceptron of 1961, and in statistics: a linear model, perturbed."""

from __future__ import annotations

import torch

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.looking import of_run, rows_of
from restrain.models import joins, residual_blocks

SKIP = ("model.name=skip_perceptron", "model.shape={depth: 1, width: 32}")
CHOICES = {"skip-layer perceptron": SKIP, "perceptron without skip": (*SKIP, "model.join.name=none")}
"""The linear model is the same with its hidden units left out of training: frozen at an output of zero."""


def run(bench: Bench) -> Outcome:
    """The trained net with its branch at zero beside its own skip, and its loss beside that of the linear model."""
    numbers, curves, commands = {}, [], []
    for name, words in CHOICES.items():
        one = bench.train("digits_resnet56", *words)
        numbers[f"loss of the {name}"] = one.loss
        numbers[f"held-out accuracy of the {name}, %"] = one.metrics["eval/top1"]
        curves.append(Line(name, *one.by_epoch()))
        commands.append(one.command)
    return Outcome(numbers, lines("Skip-layer perceptron", "epoch", "training loss", curves, log=True), tuple(commands))


CLAIM = Claim(
    number=11,
    title="Skip-layer perceptron",
    text="Connections that skip the hidden layer are as old as multilayer perceptrons (1961); in statistics (1994, 1996) "
    "the hidden units perturb a linear function.",
    source="Rosenblatt 1961; Venables and Ripley 1994; Ripley 1996",
    short="digits, 15 epochs: a perceptron of 32 hidden units with a skip layer, and the linear model alone",
    expected="With its branch at zero the net is its linear model, to the bit; trained it ends at a lower loss than the "
    "linear model alone.",
    checks=(
        Check("largest difference from the linear model with the branch at zero", "=", 0.0),
        Check("loss of the skip-layer perceptron", "<", "loss of the linear model"),
    ),
    run=run,
    long=("restrain train cifar10_resnet20 model.name=skip_perceptron 'model.shape={depth: 1, width: 256}'",),
)
