"""Claim 10: attention without skips makes all tokens the same, doubly exponentially fast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from restrain.lineage.bench import Bench, command
from restrain.lineage.charts import Line, lines
from restrain.lineage.claim import Check, Claim, Outcome
from restrain.lineage.looking import fresh, rows_of, watching
from restrain.recipe import load

WORDS = ("model.name=vit", "model.shape={depth: 12, width: 64, heads: 4, patch: 2}")
FLOOR = 1e-14  # below it float64 has a digit or two of the distance between nearly equal tokens
SKIPS = {"with skips": "model.join.name=add", "without skips": "model.join.name=none"}


def residual(x_BTD: Tensor) -> float:
    """How far a row's tokens are from being one token: ||x - mean over tokens|| / ||x||, over the batch."""
    return float((x_BTD - x_BTD.mean(1, keepdim=True)).norm() / x_BTD.norm())


def run(bench: Bench) -> Outcome:
    """The relative residual after each block of a fresh transformer, with its skips and without."""
    numbers, curves, commands = {}, [], []
    for name, join in SKIPS.items():
        recipe = load("digits_resnet56", [*WORDS, join]).recipe
        model, found = fresh(recipe).double(), []
        with torch.no_grad(), watching(model, lambda _block, x, f=found: f.append(residual(x))):
            model(rows_of(recipe, 64)[0].double())
        for block in (1, 2, 3, 12):
            numbers[f"residual after {block} block(s), {name}"] = found[block - 1]
            numbers[f"decades lost after {block} block(s), {name}"] = -math.log10(max(found[block - 1], 1e-300))
        curves.append(Line(name, list(range(1, len(found) + 1)), found))
        commands.append(command("probe", "digits_resnet56", *WORDS, join))
    figure = lines("Tokens become one another", "block", "||x - mean|| / ||x||", curves, log=True)
    notes = (
        "Blocks here have norms and MLPs beside attention; the theorem is of attention alone, which loses rank faster.",
        floor_note(found),
    )
    return Outcome(numbers, figure, tuple(commands), notes)


def floor_note(found: Sequence[float]) -> str:
    """From where on what is left, block by block without skips, is rounding: of doubling nothing can be read there."""
    block = next((n for n, left in enumerate(found, 1) if left < FLOOR), None)
    if block is None:
        return f"Without skips what is left stays above float64's rounding ({FLOOR:g}) in all {len(found)} blocks."
    return (
        f"Without skips what is left after block {block} is float64's rounding (below {FLOOR:g}): "
        f"the doubling is read over the blocks before it alone."
    )


CLAIM = Claim(
    number=10,
    title="Attention without skips loses rank",
    text="The output of attention layers without skip connections converges to one token repeated, doubly "
    "exponentially with depth; skips prevent it.",
    source="Dong et al. 2021 (arXiv:2103.03404)",
    short="a fresh transformer of 12 blocks on the patches of 64 digits, float64: distance of the tokens from their "
    "mean",
    expected="Without skips less than 1e-3 is left after 12 blocks, with skips more than 0.1; and it is doubly "
    "exponential: two blocks lose more than twice the decades of one.",
    checks=(
        Check("residual after 12 block(s), without skips", "<", 1e-3),
        Check("residual after 12 block(s), with skips", ">", 0.1),
        Check("decades lost after 2 block(s), without skips", ">", "decades lost after 1 block(s), without skips", 2.0),
    ),
    run=run,
    long=("restrain probe gpt2_124m model.join.name=none", "restrain probe gpt2_124m model.join.name=add"),
)
