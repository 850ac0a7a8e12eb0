"""Claim 17: other feedback than the weights scales further with residual nets."""

from __future__ import annotations

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome

KINDS = ("exact", "sign", "random")


def run(bench: Bench) -> Outcome:
    """Plain and residual nets of 20 layers under each kind of feedback."""
    numbers, curves, commands = {}, [], []
    for net, recipe in (("residual-20", "digits_resnet56"), ("plain-20", "digits_plain56")):
        for colour, kind in enumerate(KINDS):
            feedback = () if kind == "exact" else (f"model.feedback={kind}",)
            one = bench.train(recipe, "model.name=cifar_resnet20", *feedback)
            numbers[f"loss of {net}, {kind}"] = one.loss
            numbers[f"held-out accuracy of {net}, {kind}, %"] = one.metrics["eval/top1"]
            curves.append(Line(f"{net}, {kind}", *one.by_epoch(), dashed=net == "plain-20", colour=colour))
            commands.append(one.command)
    figure = lines("Training with other feedback", "epoch", "training loss", curves, log=True)
    return Outcome(numbers, figure, tuple(commands))


CLAIM = Claim(
    number=17,
    title="Sign-symmetry and feedback alignment",
    text="Learning that sends the error down through the signs of the weights, or through a fixed random matrix, "
    "scales further with residual nets; sign-symmetry comes close to backpropagation, feedback alignment does not.",
    source="Xiao et al. 2018 (arXiv:1811.03567); Liao et al. 2016 (arXiv:1510.05067); Lillicrap et al. 2016",
    short="plain and residual nets of 20 layers on the digits, 15 epochs: exact, sign, random",
    expected="With both, the residual net ends at a lower loss than the plain one; sign-symmetry in the residual net "
    "classifies 95 % of the held-out digits, and does better than the random matrix.",
    checks=(
        Check("loss of residual-20, sign", "<", "loss of plain-20, sign"),
        Check("loss of residual-20, random", "<", "loss of plain-20, random"),
        Check("held-out accuracy of residual-20, sign, %", ">=", 95.0),
        Check("loss of residual-20, sign", "<", "loss of residual-20, random"),
    ),
    run=run,
    long=(
        "restrain train cifar10_resnet20 model.feedback=sign",
        "restrain train imagenet_resnet50 model.feedback=sign",
    ),
)
