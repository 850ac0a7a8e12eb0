"""Claim 3: a deeper net can be a shallower one with identities in between, so it need not be worse."""

from __future__ import annotations

import json
import shutil

import torch

from restrain.lineage.bench import Bench, Trained, command, label
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.claims.degradation import trained
from restrain.lineage.looking import of_run, rows_of
from restrain.run.files import write_atomic
from restrain.training.grow import grow

TO, LENGTH = "cifar_resnet56", "length=30ep"


def run(bench: Bench) -> Outcome:
    """ResNet-20 after 15 epochs grows to 56 layers, computes the same, and trains on for 15 more."""
    small = trained(bench, 20, "add")
    grown, changed = _grown(bench, small)
    plain = trained(bench, 56, "none")
    numbers = {
        "largest change of a logit by the growth": changed,
        "loss of ResNet-20 before": small.loss,
        "loss of the grown ResNet-56": grown.loss,
        "loss of plain-56": plain.loss,
    }
    curves = [
        Line("grown to ResNet-56", *grown.by_epoch()),
        Line("ResNet-20", *small.by_epoch()),  # over the other, whose journal begins with it
        Line("plain-56", *plain.by_epoch(), dashed=True),
    ]
    figure = lines("A net grown in depth", "epoch", "training loss", curves, log=True)
    steps = (command("grow", "RUN", "--to", TO, LENGTH, "--run", "GROWN"), command("resume", "GROWN"))
    return Outcome(numbers, figure, (small.command, *steps, plain.command))


def _grown(bench: Bench, small: Trained) -> tuple[Trained, float]:
    """The grown run, finished, and how far its first logits are from those of the run that it grew from."""
    words = (small.path.name, "grown", TO, *bench.shortened(small.words[0], (LENGTH,)))
    path, memo = bench.folder / "runs" / label(words), bench.folder / "runs" / f"{label(words)}.json"
    if not memo.exists():
        shutil.rmtree(path, ignore_errors=True)  # a growth that was cut short
        grow(small.path, TO, path, [words[-1]])
        write_atomic(memo, json.dumps(_change(small, Trained(path, words))))
    return bench.resume(path, words), float(json.loads(memo.read_text()))


@torch.no_grad()
def _change(small: Trained, grown: Trained) -> float:
    x_BCHW, _ = rows_of(small.recipe, 64)
    before, after = (of_run(one).eval()(x_BCHW) for one in (small, grown))
    return float((before - after).abs().max())


CLAIM = Claim(
    number=3,
    title="A deeper net need not be worse",
    text="A deeper net can copy a shallower one and set the extra layers to the identity; a residual net does so with "
    "branches of zero.",
    source="He et al. 2015 (arXiv:1512.03385), section 1; depth surgery as in Chen et al. 2015 (arXiv:1511.05641)",
    short="ResNet-20 on the digits for 15 epochs, grown to 56 layers by blocks with zero branches, 15 epochs more",
    expected="No logit changes by the growth; the grown net ends below the loss that it started from and below a "
    "tenth of that of the plain net of 56 layers.",
    checks=(
        Check("largest change of a logit by the growth", "=", 0.0),
        Check("loss of the grown ResNet-56", "<", "loss of ResNet-20 before"),
        Check("loss of the grown ResNet-56", "<", "loss of plain-56", 0.1),
    ),
    run=run,
    # Twice the steps: the schedule goes on from the middle of the longer one.
    long=(
        "restrain train cifar10_resnet20 --run RUN",
        "restrain grow RUN --to cifar_resnet56 length=128000st --run GROWN",
        "restrain resume GROWN",
        "restrain train cifar10_plain56",
    ),
)
