"""Claim 2: degradation is no vanishing gradient: with BatchNorm, those of a deep plain net are healthy."""

from __future__ import annotations

from restrain.lineage.bench import Bench, command
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.claims.degradation import trained
from restrain.lineage.looking import fresh, gradients_by_block, of_run, rows_of

MOMENTS = ("at the start", "trained")


def run(bench: Bench) -> Outcome:
    """Norm of the loss's gradient at the output of each block, of both nets, before and after training."""
    numbers, curves = {}, []
    for colour, (kind, join) in enumerate((("plain", "none"), ("residual", "add"))):
        one = trained(bench, 56, join)
        recipe = one.recipe
        for moment in MOMENTS:
            model = fresh(recipe) if moment == "at the start" else of_run(one)
            norms = gradients_by_block(model, *rows_of(recipe, 64))
            numbers[f"first / last gradient of {kind}-56, {moment}"] = norms[0] / norms[-1]
            numbers[f"smallest / last gradient of {kind}-56, {moment}"] = min(norms) / norms[-1]
            name = f"{kind}-56, {moment}"
            blocks = list(range(1, len(norms) + 1))
            curves.append(Line(name, blocks, norms, dashed=moment == "at the start", colour=colour))
    figure = lines("Gradient norm by depth", "block", "norm of dE/dx after the block", curves, log=True)
    commands = tuple(command("train", name) for name in ("digits_plain56", "digits_resnet56"))
    grown = numbers["first / last gradient of plain-56, at the start"]
    note = (
        f"At the start the gradient of the plain net grows towards the input, {grown:.3g} times over its blocks: with "
        f"BatchNorm and without skips it is large rather than small (Yang et al. 2019, arXiv:1902.08129)."
    )
    return Outcome(numbers, figure, commands, (note,) if grown > 1 else ())


CLAIM = Claim(
    number=2,
    title="Not vanishing gradients",
    text="The difficulty of deep plain nets is not that gradients vanish: with normalisation they have healthy norms "
    "at every depth.",
    source="He et al. 2015 (arXiv:1512.03385), section 4.1",
    short="norm of the gradient after each of the 27 blocks of plain-56 and ResNet-56, on 64 digits, before training "
    "and at its end",
    expected="In both nets, before and after, no block's gradient is smaller than a hundredth of the last block's.",
    checks=tuple(
        Check(f"smallest / last gradient of {kind}-56, {moment}", ">=", 0.01)
        for kind in ("plain", "residual")
        for moment in MOMENTS
    ),
    run=run,
    long=("restrain train cifar10_plain56", "restrain train cifar10_resnet56"),
)
