"""Claim 12: the LSTM's cell is a residual stream in time, and a positive bias opens its forget gate."""

from __future__ import annotations

import torch

from restrain.draws import mix_torch, name_key, uniform_torch
from restrain.insight.through_time import gradient_norms
from restrain.lineage.bench import Bench
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.models import build_model

STEPS, ROWS, WIDTH = 200, 16, 32
NETS: dict[str, dict] = {
    "RNN": {"name": "rnn"},
    "LSTM of 1997": {"name": "lstm1997"},
    "LSTM of 2000, bias 0": {"name": "lstm", "recurrent": {"forget_bias": 0.0}},
    "LSTM of 2000, bias 3": {"name": "lstm", "recurrent": {"forget_bias": 3.0}},
}


def run(bench: Bench) -> Outcome:
    """What arrives of the last step's error at each of 200 steps, in four untrained nets, float64."""
    numbers, curves = {}, []
    keys = torch.arange(ROWS * STEPS * 2).view(ROWS, STEPS, 2)
    x_BTD = uniform_torch(mix_torch(name_key("lineage 12"), keys))
    for net, section in NETS.items():
        sizes = {"shape": {"width": WIDTH}, "classes": 2, "in_chans": 2}
        model = build_model(section | sizes).double()
        norms = gradient_norms(model, lambda m=model: m(x_BTD).square().sum())
        numbers[f"gradient through 200 steps, {net}"] = norms[0] / norms[-1]
        curves.append(Line(net, list(range(1, STEPS + 1)), [norm / norms[-1] for norm in norms]))
    figure = lines("What arrives of the last step's error", "step", "gradient over that at step 200", curves, log=True)
    note = "Of an LSTM it is the gradient at the cell, of the RNN that at its state."
    return Outcome(numbers, figure, (), (note,))


CLAIM = Claim(
    number=12,
    title="The constant error carousel",
    text="The cell of the LSTM (1997) is a residual connection of weight 1.0 through time; unrolled it is the residual "
    "formula. Forget gates (2000) turn the weight into a gate, which a positive bias opens.",
    source="Hochreiter and Schmidhuber 1997; Gers et al. 2000",
    short="gradient of the last of 200 steps at the first one over that at the last one, in untrained nets of 32 units",
    expected="Of the LSTM of 1997 at least a tenth arrives; of the RNN less than 1e-6; of the LSTM of 2000 with bias 0 "
    "less than 1e-20, with bias 3 more than 1e-6.",
    checks=(
        Check("gradient through 200 steps, LSTM of 1997", ">=", 0.1),
        Check("gradient through 200 steps, RNN", "<", 1e-6),
        Check("gradient through 200 steps, LSTM of 2000, bias 0", "<", 1e-20),
        Check("gradient through 200 steps, LSTM of 2000, bias 3", ">", 1e-6),
    ),
    run=run,
    long=("restrain train adding_lstm", "restrain train adding_lstm1997", "restrain train adding_rnn"),
)
