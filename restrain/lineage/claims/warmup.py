"""Claim 9: a deep post-norm transformer needs warm-up, a pre-norm one does not."""

from __future__ import annotations

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome

# Chosen by the pre-norm net with warm-up alone, which must learn for the others to say anything: of 24 blocks in 10
# epochs it ends at a loss of 1.65, of 12 blocks in 20 epochs, at the same cost, at 0.96.
SHAPE = "model.shape={depth: 12, width: 64, heads: 4, patch: 2}"
ADAM = ("optimizer={name: adamw, lr: 1.0e-3, weight_decay: 0.05}", "length=20ep")
WARM = {"without warm-up": "schedule.warmup=0ep", "with warm-up": "schedule.warmup=2ep"}


def run(bench: Bench) -> Outcome:
    """A transformer of 12 blocks on the 16 patches of a digit: both orders, with and without warm-up."""
    numbers, curves, commands = {}, [], []
    for colour, order in enumerate(("post", "pre")):
        for name, warmup in WARM.items():
            model = ("model.name=vit", SHAPE, f"model.transformer={{order: {order}}}")
            one = bench.train("digits_resnet56", *model, *ADAM, warmup)
            numbers[f"loss of {order}-norm {name}"] = one.loss
            curves.append(Line(f"{order}-norm {name}", *one.by_epoch(), dashed="out" in name, colour=colour))
            commands.append(one.command)
    figure = lines("Order of the norm and warm-up, 12 blocks", "epoch", "training loss", curves, log=True)
    return Outcome(numbers, figure, tuple(commands))


CLAIM = Claim(
    number=9,
    title="Post-norm needs warm-up",
    text="With the norm after each join, gradients near the output are large at the start, and a deep transformer "
    "fails without warm-up; with the norm before each branch it does not need one.",
    source="Xiong et al. 2020 (arXiv:2002.04745), figures 2 and 4",
    short="a vision transformer of 12 blocks, 64 wide, on the digits; AdamW at 1e-3, 20 epochs, warm-up of 0 or 2",
    expected="Without warm-up post-norm ends at more than twice the loss that it has with it, and at more than twice "
    "that of pre-norm; pre-norm without warm-up is within a factor of two of pre-norm with it.",
    checks=(
        Check("loss of post-norm without warm-up", ">", "loss of post-norm with warm-up", 2.0),
        Check("loss of post-norm without warm-up", ">", "loss of pre-norm without warm-up", 2.0),
        Check("loss of pre-norm without warm-up", "<", "loss of pre-norm with warm-up", 2.0, side=True),
    ),
    run=run,
    long=tuple(
        f"restrain train shakespeare_gpt model.shape.depth=24 model.transformer.order={order} schedule.warmup={warmup}"
        for order in ("pre", "post")
        for warmup in ("0st", "200st")
    ),
)
