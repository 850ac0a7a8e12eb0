"""Claim 8: a transformer block is two residual blocks; GPT-3 has 96 of them and about 400 projections."""

from __future__ import annotations

from torch import nn

from restrain.lineage.bench import Bench, command
from restrain.lineage.charts import bars
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.looking import without_weights
from restrain.models import joins, residual_blocks

NAMES = ("gpt2", "gpt2_xl", "gpt3_175b")
VOCABULARY = 50257


def run(bench: Bench) -> Outcome:
    """Blocks, joins, projections and parameters, counted on the meta device."""
    numbers, rows = {}, []
    for name in NAMES:
        model = without_weights(name=name, classes=VOCABULARY)
        blocks = [block for _, block in residual_blocks(model)]
        projections = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
        numbers[f"blocks of {name}"] = len(blocks)
        numbers[f"joins in each block of {name}"] = len(joins(blocks[0]))
        numbers[f"projections of {name}"] = len(projections)
        numbers[f"parameters of {name}, 10^9"] = sum(p.numel() for p in model.parameters()) / 1e9
        rows.append((f"blocks of {name}", len(blocks)))
        rows.append((f"projections of {name}", len(projections)))
    widths = {m.out_features / m.in_features for m in projections} if projections else set()
    numbers["widest MLP over the stream, gpt3_175b"] = max(widths)
    note = "Query, key and value are one matrix here and three in other counts, which then come to 576."
    figure = bars("Blocks and projections", "count", rows)
    return Outcome(numbers, figure, (command("check", "gpt3_175b"),), (note,))


CLAIM = Claim(
    number=8,
    title="A transformer block is two residual blocks",
    text="Attention and MLP each have a skip of their own; since GPT-2 the norm stands before them. The MLP is an "
    "inverse bottleneck, four times as wide as the stream. GPT-3 has 96 blocks, about 400 projections.",
    source="Radford et al. 2019 (GPT-2); Brown et al. 2020 (arXiv:2005.14165), table 2.1",
    short="GPT-2, GPT-2 XL and GPT-3 built on the meta device and counted",
    expected="Two joins in a block; of GPT-3 96 blocks, 400 projections within 10 %, between 174 and 175.5 thousand "
    "million parameters; an MLP of four times the width.",
    checks=(
        Check("joins in each block of gpt2", "=", 2),
        Check("joins in each block of gpt3_175b", "=", 2),
        Check("blocks of gpt3_175b", "=", 96),
        Check("projections of gpt3_175b", ">=", 360),
        Check("projections of gpt3_175b", "<=", 440),
        Check("parameters of gpt3_175b, 10^9", ">=", 174.0),
        Check("parameters of gpt3_175b, 10^9", "<=", 175.5),
        Check("widest MLP over the stream, gpt3_175b", "=", 4),
    ),
    run=run,
    long=("restrain train gpt2_124m",),
)
