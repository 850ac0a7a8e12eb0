"""Claim 1: more plain layers make even the training error worse; residual ones do not."""

from __future__ import annotations

from restrain.lineage.bench import Bench, Trained
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome

DEPTHS = (20, 32, 44, 56)


# Without zero_init a branch begins as in the paper, with a norm's scale of 1. With it (Goyal et al. 2017) a block is an
# identity at first, which a plain one cannot be: then the join is not all that differs.
AS_PUBLISHED = "model.zero_init=false"
KINDS = {
    "plain": ("none", ()),
    "residual, as published": ("add", (AS_PUBLISHED,)),
    "residual, from zero": ("add", ()),
}


def trained(bench: Bench, depth: int, join: str, *words: str) -> Trained:
    """A plain ("none") or residual ("add") net of ``depth`` layers on the digits; other claims compare with these."""
    name = "digits_plain56" if join == "none" else "digits_resnet56"
    # Claim 2 reads the gradients of the deepest ones.
    size = ["track.probe=11st"] if depth == 56 else [f"model.name=cifar_resnet{depth}"]
    return bench.train(name, *size, *words)


def run(bench: Bench) -> Outcome:
    """Three kinds at four depths; training curves of the least and the greatest."""
    numbers, curves, commands = {}, [], []
    for colour, (kind, (join, words)) in enumerate(KINDS.items()):
        for depth in DEPTHS:
            one = trained(bench, depth, join, *words)
            numbers[f"loss of {kind}, {depth}"] = one.loss
            if depth in (min(DEPTHS), max(DEPTHS)):  # twelve curves are more than a figure bears
                curves.append(Line(f"{kind}, {depth}", *one.by_epoch(), dashed=depth == min(DEPTHS), colour=colour))
            commands.append(one.command)
    figure = lines("Training loss of plain and residual nets", "epoch", "training loss", curves, log=True)
    return Outcome(numbers, figure, tuple(commands))


CLAIM = Claim(
    number=1,
    title="Degradation",
    text="Stacking more plain layers makes even the training error worse; a residual net of the same layers does not "
    "suffer so.",
    source="He et al. 2015 (arXiv:1512.03385), figures 1 and 6",
    short="plain and residual nets of 20, 32, 44 and 56 layers on the digits, 15 epochs; training loss of the last "
    "one; the residual ones with branches that start as in the paper, and with branches that start at zero",
    expected="The plain net of 56 layers ends at more than ten times the loss of the one of 20, and at more than ten "
    "times that of either residual one of 56, which both end below 0.2; each plain net is worse than the shallower.",
    checks=(
        Check("loss of plain, 56", ">", "loss of plain, 20", 10.0),
        Check("loss of plain, 56", ">", "loss of residual, as published, 56", 10.0),
        Check("loss of plain, 56", ">", "loss of residual, from zero, 56", 10.0),
        Check("loss of plain, 32", ">", "loss of plain, 20"),
        Check("loss of plain, 44", ">", "loss of plain, 32"),
        Check("loss of plain, 56", ">", "loss of plain, 44"),
        Check("loss of residual, as published, 56", "<", 0.2),
        Check("loss of residual, from zero, 56", "<", 0.2),
    ),
    run=run,
    long=("restrain train cifar10_plain20", "restrain train cifar10_plain56", "restrain train cifar10_resnet56"),
)
