"""Claim 1: more plain layers make even the training error worse; residual ones do not."""

from __future__ import annotations

from restrain.lineage.bench import Bench, Trained
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome

DEPTHS = (20, 32, 44, 56)


def trained(bench: Bench, depth: int, join: str) -> Trained:
    """A plain ("none") or residual ("add") net of ``depth`` layers on the digits; other claims compare with these."""
    name = "digits_plain56" if join == "none" else "digits_resnet56"
    # Claim 2 reads the gradients of the deepest ones.
    size = ["track.probe=11st"] if depth == 56 else [f"model.name=cifar_resnet{depth}"]
    return bench.train(name, *size)


def run(bench: Bench) -> Outcome:
    """Training curves of both kinds at four depths."""
    numbers, curves, commands = {}, [], []
    for kind, join in (("plain", "none"), ("residual", "add")):
        for colour, depth in enumerate(DEPTHS):
            one = trained(bench, depth, join)
            numbers[f"loss of {kind}-{depth}"] = one.loss
            curves.append(Line(f"{kind}-{depth}", *one.by_epoch(), dashed=kind == "plain", colour=colour))
            commands.append(one.command)
    figure = lines("Training loss of plain and residual nets", "epoch", "training loss", curves, log=True)
    return Outcome(numbers, figure, tuple(commands))


CLAIM = Claim(
    number=1,
    title="Degradation",
    text="Stacking more plain layers makes even the training error worse; a residual net of the same layers does not "
    "suffer so.",
    source="He et al. 2015 (arXiv:1512.03385), figures 1 and 6",
    short="plain and residual nets of 20, 32, 44 and 56 layers on the digits, 15 epochs; training loss of the last one",
    expected="The plain net of 56 layers ends at more than ten times the loss of the one of 20, and at more than ten "
    "times that of the residual one of 56; each plain net is worse than the shallower one.",
    checks=(
        Check("loss of plain-56", ">", "loss of plain-20", 10.0),
        Check("loss of plain-56", ">", "loss of residual-56", 10.0),
        Check("loss of plain-32", ">", "loss of plain-20"),
        Check("loss of plain-44", ">", "loss of plain-32"),
        Check("loss of plain-56", ">", "loss of plain-44"),
        Check("loss of residual-56", "<", 0.2),
    ),
    run=run,
    long=("restrain train cifar10_plain20", "restrain train cifar10_plain56", "restrain train cifar10_resnet56"),
)
