"""Claim 15: stochastic depth drops whole branches, keeps the skip, and regularises."""

from __future__ import annotations

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.looking import fresh, seconds_side_by_side

CHOICES = {
    "full depth": (),
    "sample": ("model.drop_path.rate=0.5",),
    "batch": ("model.drop_path.rate=0.5", "model.drop_path.mode=batch"),
}
TIMED = 50  # steps of each, in turn


def run(bench: Bench) -> Outcome:
    """ResNet-110 at full depth, with rows dropped, and with whole blocks dropped, which saves their time."""
    numbers, curves, commands = {}, [], []
    models, modes = {}, {}
    for colour, (name, words) in enumerate(CHOICES.items()):
        one = bench.train("digits_resnet56", "model.name=cifar_resnet110", *words)
        numbers[f"training loss, {name}"] = one.loss
        numbers[f"error on held-out digits, {name}, %"] = 100.0 - one.metrics["eval/top1"]
        models[name], modes[name] = fresh(one.recipe), one.recipe.model.drop_path.mode
        curves.append(Line(f"{name}, training", *one.by_epoch(), dashed=True, colour=colour))
        curves.append(Line(f"{name}, held out", *one.by_epoch("eval/loss"), colour=colour))
        commands.append(one.command)
    for name, seconds in seconds_side_by_side(models, modes, TIMED).items():
        numbers[f"seconds a step, {name}"] = seconds
    figure = lines("Stochastic depth, ResNet-110", "epoch", "loss", curves, log=True)
    return Outcome(numbers, figure, tuple(commands))


CLAIM = Claim(
    number=15,
    title="Stochastic depth",
    text="Whole branches are dropped at random in training and the skip is kept: it regularises, and where a whole "
    "block is left out it shortens training.",
    source="Huang et al. 2016 (arXiv:1603.09382), figures 3 and 4",
    short="ResNet-110 on the digits, 15 epochs, drop rate rising to 0.5: none, rows (sample), whole blocks (batch)",
    expected="Training loss is higher with either, the error on held-out digits is not higher, and a step in mode "
    "batch takes less than 0.9 of the processor time at full depth (ideal: about 0.78), of 50 steps of each in turn.",
    checks=(
        Check("training loss, sample", ">", "training loss, full depth"),
        Check("training loss, batch", ">", "training loss, full depth"),
        Check("error on held-out digits, sample, %", "<=", "error on held-out digits, full depth, %"),
        Check("error on held-out digits, batch, %", "<=", "error on held-out digits, full depth, %"),
        Check("seconds a step, batch", "<", "seconds a step, full depth", 0.9),
    ),
    run=run,
    long=("restrain train cifar10_resnet110", "restrain train cifar10_resnet110_sd"),
)
