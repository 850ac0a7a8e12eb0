"""Claim 4: the residual stream is a sum, and the gradient has a path through no weight."""

from __future__ import annotations

import torch.nn.functional as F

from restrain.insight.propagation import check, record
from restrain.lineage.bench import Bench, command
from restrain.lineage.charts import bars
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.looking import fresh, rows_of
from restrain.recipe import load

VIT = ("model.name=vit", "model.shape={depth: 12, width: 64, heads: 4, patch: 2}")
NETS = {
    "pre-activation ResNet-56": ("model.name=cifar_preresnet56", "model.zero_init=false"),
    "pre-norm transformer": VIT,
    "post-activation ResNet-56": ("model.zero_init=false",),
}


def run(bench: Bench) -> Outcome:
    """Relative errors of both identities over the longest stretch of each net on which the stream keeps its shape."""
    numbers, rows, commands = {}, [], []
    for net, words in NETS.items():
        recipe = load("digits_resnet56", words).recipe
        model = fresh(recipe)
        x_BCHW, labels_B = rows_of(recipe, 64)
        loss, passed = record(model, lambda m=model, x=x_BCHW, y=labels_B: F.cross_entropy(m(x), y))
        found = max(check(loss, passed), key=lambda one: one.joins)
        numbers[f"forward error of the {net}"] = found.error
        numbers[f"backward error of the {net}"] = found.grad_error
        rows += [(f"{net}, {way}", numbers[f"{way} error of the {net}"]) for way in ("forward", "backward")]
        commands.append(command("probe", "digits_resnet56", *words))
    figure = bars("How far the stream is from a sum", "relative error", rows, log=True)
    note = "The post-activation net stands beside them: a ReLU after each join makes its stream no sum."
    return Outcome(numbers, figure, tuple(commands), (note,))


CLAIM = Claim(
    number=4,
    title="The stream is a sum",
    text="With identity shortcuts and nothing between the joins, x_L = x_l + sum of f_i(x_i), and dE/dx_l = dE/dx_L "
    "(1 + d/dx_l sum of f_i): signals pass from any block to any other directly.",
    source="He et al. 2016 (arXiv:1603.05027), equations 4 and 5",
    short="both identities at the start of training, float32, on 64 digits: a pre-activation ResNet-56, a transformer "
    "of 12 blocks, and the post-activation ResNet-56 beside them",
    expected="Relative errors of at most 1e-5, forward and backward, in the first two; more than 1e-2 forward where a "
    "ReLU follows each join.",
    checks=(
        Check("forward error of the pre-activation ResNet-56", "<=", 1e-5),
        Check("backward error of the pre-activation ResNet-56", "<=", 1e-5),
        Check("forward error of the pre-norm transformer", "<=", 1e-5),
        Check("backward error of the pre-norm transformer", "<=", 1e-5),
        Check("forward error of the post-activation ResNet-56", ">", 1e-2),
    ),
    run=run,
    long=("restrain probe digits_resnet56 model.name=cifar_preresnet1001",),
)
