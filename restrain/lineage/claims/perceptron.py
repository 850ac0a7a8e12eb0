"""Claim 11: skip connections in a multilayer perceptron of 1961, and in statistics: a linear model, perturbed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from restrain.lineage.bench import Bench, Trained
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.looking import of_run, rows_of

RECIPE, LENGTH = "digits_perceptron", "length=15ep"
NO_SHAPE = "model.shape={depth: null, width: null}"  # the linear model has none


def linear(section: Mapping[str, Any]) -> nn.Module:
    """The linear model on 8 x 8 pixels, for :func:`restrain.fit`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * section["in_chans"], section["classes"]))


def run(bench: Bench) -> Outcome:
    """The trained net with its branch at zero beside its own skip, and its loss beside that of the linear model."""
    runs = {
        "linear model": bench.train(RECIPE, LENGTH, NO_SHAPE, model=linear),
        "skip-layer perceptron": bench.train(RECIPE, LENGTH),
        "perceptron without skip": bench.train(RECIPE, LENGTH, "model.join.name=none"),
    }
    numbers = {"largest difference from the linear model with the branch at zero": _difference(runs)}
    for name, one in runs.items():
        numbers[f"loss of the {name}"] = one.loss
        numbers[f"held-out accuracy of the {name}, %"] = one.metrics["eval/top1"]
    curves = [Line(name, *one.by_epoch()) for name, one in runs.items()]
    figure = lines("Skip-layer perceptron", "epoch", "training loss", curves, log=True)
    return Outcome(numbers, figure, tuple(one.command for one in runs.values()))


@torch.no_grad()
def _difference(runs: Mapping[str, Trained]) -> float:
    """Between the trained net whose branch's last layer is zero, and its skip layer alone."""
    one = runs["skip-layer perceptron"]
    model: Any = of_run(one).eval()
    x_BCHW, _ = rows_of(one.recipe, 64)
    model.block.output.weight.zero_()
    return float((model(x_BCHW) - model.block.skip(x_BCHW.flatten(1))).abs().max())


CLAIM = Claim(
    number=11,
    title="Skip-layer perceptron",
    text="Connections that skip the hidden layer are as old as multilayer perceptrons (1961); in statistics (1994, "
    "1996) the hidden units perturb a linear function.",
    source="Rosenblatt 1961; Venables and Ripley 1994; Ripley 1996",
    short="digits, 15 epochs: a perceptron of 64 hidden units with a skip layer, and the linear model alone",
    expected="With its branch at zero the net is its linear model, to the bit; trained it ends at a lower loss than "
    "the linear model alone.",
    checks=(
        Check("largest difference from the linear model with the branch at zero", "=", 0.0),
        Check("loss of the skip-layer perceptron", "<", "loss of the linear model"),
    ),
    run=run,
    long=("restrain train digits_perceptron",),
)
