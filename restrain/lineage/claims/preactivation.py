"""Claim 6: pre-activation lets nets of hundreds of layers, and a thousand, train."""

from __future__ import annotations

from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome

NETS = {"v1-110": "cifar_resnet110", "v2-110": "cifar_preresnet110", "v2-164": "cifar_preresnet164"}
# Branches start as in the papers: with a zero at their end, both kinds begin as identities and the difference is gone.
AS_PUBLISHED = "model.zero_init=false"


def run(bench: Bench) -> Outcome:
    """Training curves of both kinds at 110 layers, of 164 layers, and the first two epochs of 1001."""
    numbers, curves, commands = {}, [], []
    for net, name in NETS.items():
        one = bench.train("digits_resnet56", f"model.name={name}", AS_PUBLISHED, "length=10ep")
        numbers[f"loss of {net}"] = one.loss
        curves.append(Line(net, *one.by_epoch()))
        commands.append(one.command)
    deep = bench.train("digits_resnet56", "model.name=cifar_preresnet1001", AS_PUBLISHED, "length=2ep")
    numbers["loss of v2-1001, second epoch"] = deep.loss
    curves.append(Line("v2-1001", *deep.by_epoch()))
    figure = lines("Original and pre-activation blocks", "epoch", "training loss", curves, log=True)
    return Outcome(numbers, figure, (*commands, deep.command))


CLAIM = Claim(
    number=6,
    title="Pre-activation",
    text="With norm and ReLU before each convolution and nothing on the shortcut, nets of 200 to more than 1,000 "
    "layers train, and better than the original ones.",
    source="He et al. 2016 (arXiv:1603.05027), tables 2 and 3, figure 6",
    short="digits, 10 epochs: 110 layers of both kinds, 164 pre-activated ones; two epochs of 1001",
    expected="The pre-activation net of 110 layers ends at a lower loss than the original one; 164 layers end below "
    "0.1; 1,001 layers are below 1.5 in their second epoch, where guessing is 2.3.",
    checks=(
        Check("loss of v2-110", "<", "loss of v1-110"),
        Check("loss of v2-164", "<", 0.1),
        Check("loss of v2-1001, second epoch", "<", 1.5),
    ),
    run=run,
    long=(
        "restrain train cifar10_resnet110",
        "restrain train cifar10_preresnet110",
        "restrain train cifar10_preresnet164",
        "restrain train cifar10_preresnet1001",
    ),
)
