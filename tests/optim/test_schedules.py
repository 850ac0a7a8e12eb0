"""Schedules: exact values at their corners, and what holds for all of them."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from restrain.errors import UserError
from restrain.optim.schedules import SCHEDULES, factor

EPOCH, TOTAL = 10, 100


@dataclass
class Epochs:
    value: float

    def steps(self, steps_per_epoch: int, total_steps: int | None = None) -> int:
        return round(self.value * steps_per_epoch)


def section(name: str, warmup: float = 0, warmup_from: float = 0.0, final: float | None = None, **rest):
    if name == "step":
        rest = {"at": [Epochs(3), Epochs(6), Epochs(8)], "factor": 0.1} | rest
    return SimpleNamespace(name=name, warmup=Epochs(warmup), warmup_from=warmup_from, final=final, **rest)


def at(schedule, step: int) -> float:
    return factor(schedule, step, steps_per_epoch=EPOCH, total_steps=TOTAL)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (section("constant"), {0: 1, 50: 1, 99: 1}),
        (section("constant", final=0.2), {0: 1, 50: 0.6, 100: 0.2}),
        (section("step"), {0: 1, 29: 1, 30: 0.1, 59: 0.1, 60: 0.01, 79: 0.01, 80: 0.001, 99: 0.001}),
        (section("step", final=0.0), {59: 0.1, 79: 0.01, 80: 0.001, 90: 0.0005, 100: 0}),
        (section("cosine"), {0: 1, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0}),
        (section("cosine", final=0.1), {0: 1, 50: 0.55, 100: 0.1}),
        (section("linear"), {0: 1, 25: 0.75, 99: 0.01, 100: 0}),
        (section("linear", final=0.5), {0: 1, 50: 0.75, 100: 0.5}),
        (section("linear", warmup=2), {0: 0, 10: 0.5, 19: 0.95, 20: 1, 60: 0.5, 100: 0}),
        (section("cosine", warmup=2, warmup_from=0.5), {0: 0.5, 10: 0.75, 20: 1, 60: 0.5}),
        (section("step", warmup=1), {5: 0.5, 10: 1, 30: 0.1}),
        (section("constant", warmup=4), {39: 0.975, 40: 1}),
    ],
)
def test_values(schedule, expected):
    assert {step: at(schedule, step) for step in expected} == pytest.approx(expected, abs=1e-12)


def test_cosine_and_step_are_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL)
    for step in range(TOTAL):
        assert at(section("cosine"), step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


schedules = st.builds(
    section,
    st.sampled_from(sorted(SCHEDULES)),
    warmup=st.integers(0, 12),
    warmup_from=st.floats(0, 1),
    final=st.none() | st.floats(0, 1),
)


@given(schedules, st.integers(0, 2 * TOTAL))
def test_factors_stay_between_nothing_and_one(schedule, step):
    assert 0.0 <= at(schedule, step) <= 1.0


@given(schedules)
def test_final_is_reached_and_kept(schedule):
    if schedule.warmup.value * EPOCH < TOTAL and schedule.final is not None:
        assert at(schedule, TOTAL) == pytest.approx(schedule.final)
        assert at(schedule, TOTAL + 5) == pytest.approx(schedule.final)


@given(schedules)
def test_warm_up_ends_at_one(schedule):
    before_milestones = schedule.name != "step" or schedule.warmup.value < 3
    if before_milestones and schedule.warmup.value * EPOCH < TOTAL:
        assert at(schedule, round(schedule.warmup.value * EPOCH)) == pytest.approx(1.0)


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(UserError, match=r"schedule\.name is 'cosin'.*Did you mean 'cosine'"):
        at(SimpleNamespace(name="cosin"), 0)
