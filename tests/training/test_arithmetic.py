"""The sums that are shown agree with what a run uses."""

import types

import numpy as np
import pytest
import torch

from restrain.data.digits import TRAINED_ON, DigitsSource
from restrain.data.order import Plan
from restrain.models import build_model, named_joins, residual_blocks
from restrain.optim.optimizers import base_lr
from restrain.recipe import Duration, available, load
from restrain.recipe.model_names import FAMILIES
from restrain.training import arithmetic, build
from restrain.training.arithmetic import Scale

IMAGENET = 1_281_167


def test_the_digits_are_counted_without_being_loaded() -> None:
    assert int(DigitsSource("train").counts.sum()) == TRAINED_ON


@pytest.mark.parametrize("name", available())
def test_steps_and_learning_rates_are_those_of_a_run(name: str) -> None:
    recipe = load(name).recipe
    samples = TRAINED_ON if recipe.data.name == "digits" else IMAGENET
    scale = Scale(recipe, samples, "")
    plan = Plan(samples, recipe.batch.global_, recipe.batch.group, 1)
    total = build.total_steps(recipe, plan)
    assert scale.steps(recipe.length) == total
    assert scale.epoch == plan.steps_per_epoch
    assert arithmetic.learning_rate(recipe) == base_lr(recipe.optimizer, recipe.batch.global_)
    mine, theirs = arithmetic.factor_of(scale), build.build_factor(recipe, plan, total)
    assert mine is not None
    steps = np.unique(np.linspace(0, total - 1, 200).astype(int)).tolist()
    assert [mine(step) for step in steps] == [theirs(step) for step in steps]


@pytest.mark.parametrize("rule", ["linear", "sqrt", "none"])
def test_the_learning_rate_rules(rule: str) -> None:
    overrides = ["batch.global=512", "optimizer.lr=0.3"]
    recipe = load(
        "imagenet_resnet50", [*overrides, f"optimizer.lr_rule={rule}"] if rule != "none" else overrides
    ).recipe
    if rule == "none":
        recipe = load("digits_resnet20", overrides).recipe
    assert arithmetic.learning_rate(recipe) == base_lr(recipe.optimizer, 512)
    (line,) = arithmetic.learning_rate_lines(Scale(recipe, None, ""))
    assert line.endswith(f"{arithmetic.learning_rate(recipe):.6g}") or rule == "none"


@pytest.mark.parametrize("text", ["3ep", "0.5ep", "7%", "123st"])
def test_durations(text: str) -> None:
    recipe = load("digits_resnet20").recipe
    plan = Plan(TRAINED_ON, 64, 16, 1)
    duration = Duration.parse(text)
    scale = Scale(recipe, TRAINED_ON, "the digits set")
    steps = build.step_of(duration, plan, build.total_steps(recipe, plan))
    assert scale.steps(duration) == steps
    assert f"{steps:,} steps" in " ".join(arithmetic.duration_lines(scale, duration))
    assert Scale(recipe, None, "").steps(duration) == (123 if duration.unit == "st" else None)


COUNTED = [name for family in arithmetic.BLOCKS for name in FAMILIES[family].names if not name.endswith("1202")]


@pytest.mark.parametrize("name", COUNTED)
def test_blocks_and_their_drop_rates(name: str) -> None:
    rate = 0.3 if arithmetic.own_blocks(name) else 0.0
    with torch.device("meta"):
        model = build_model({"name": name, "classes": 10, "drop_path": {"rate": rate}})
    assert arithmetic.own_blocks(name) == len(residual_blocks(model))
    model_section = types.SimpleNamespace(name=name, drop_path=types.SimpleNamespace(rate=0.3, decay="linear"))
    scale = Scale(types.SimpleNamespace(model=model_section), None, "")  # type: ignore[arg-type]
    for depth, (_, join) in enumerate(named_joins(model)):
        (_, line) = arithmetic.drop_path_lines(scale, depth)
        assert float(line.rpartition(" = ")[2]) == pytest.approx(join.rate, rel=1e-5)
    assert arithmetic.own_blocks("timm/resnet50") is None
