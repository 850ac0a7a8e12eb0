"""Schedules: exact values at their corners, and what holds for all of them."""

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from restrain.data.order import Plan, Segment
from restrain.errors import UserError
from restrain.optim.schedules import SCHEDULES, factor
from restrain.recipe import load
from restrain.training.build import build_factor

EPOCH, TOTAL = 10, 100


@dataclass
class Epochs:
    value: float

    def steps(self, steps_per_epoch: int, total_steps: int | None = None) -> int:
        return round(self.value * steps_per_epoch)


def section(name: str, warmup: float = 0, warmup_from: float = 0.0, final: float | None = None, **rest):
    own = {
        "step": {"at": [Epochs(3), Epochs(6), Epochs(8)], "factor": 0.1},
        "poly": {"power": 2.0},
        "one_cycle": {"peak": Epochs(2), "start": 0.0, "shape": "linear"},
        "wsd": {"decay": Epochs(2), "shape": "linear"},
    }
    if name == "one_cycle":
        warmup = 0  # it has its own rise
    rest = own.get(name, {}) | rest
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
        (section("poly"), {0: 1, 50: 0.25, 90: 0.01, 100: 0}),
        (section("poly", power=1.0, final=0.5, warmup=2), {10: 0.5, 20: 1, 60: 0.75, 100: 0.5}),
        (section("one_cycle", start=0.1), {0: 0.1, 10: 0.55, 20: 1, 60: 0.5, 100: 0}),
        (section("one_cycle", shape="cosine", final=0.2), {0: 0, 10: 0.5, 20: 1, 60: 0.6, 100: 0.2}),
        (section("one_cycle", peak=Epochs(10)), {0: 0, 50: 0.5, 99: 0.99}),
        (section("wsd", warmup=1), {5: 0.5, 10: 1, 80: 1, 90: 0.5, 100: 0}),
        (section("wsd", shape="sqrt", final=0.1), {79: 1, 85: 0.55, 100: 0.1}),
        (section("wsd", shape="cosine"), {80: 1, 90: 0.5, 100: 0}),
        (section("wsd", decay=Epochs(20), warmup=2), {20: 1, 60: 0.5, 100: 0}),
        (section("inverse_sqrt", warmup=1), {0: 0, 5: 0.5, 10: 1, 40: 0.5, 90: 1 / 3}),
        (section("cosine", warmup=2, warmup_prefix=False), {10: 0.5, 20: (1 + math.cos(0.2 * math.pi)) / 2, 50: 0.5}),
        (section("cosine", per="epoch"), {0: 1, 9: 1, 50: 0.5, 59: 0.5, 99: (1 + math.cos(0.9 * math.pi)) / 2}),
        (section("linear", warmup=2, per="epoch"), {9: 0, 10: 0.5, 19: 0.5, 20: 1, 29: 1, 30: 0.875}),
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
    if schedule.name != "inverse_sqrt" and schedule.warmup.value * EPOCH < TOTAL and schedule.final is not None:
        assert at(schedule, TOTAL) == pytest.approx(schedule.final)
        assert at(schedule, TOTAL + 5) == pytest.approx(schedule.final)


@given(schedules)
def test_warm_up_ends_at_one(schedule):
    if schedule.name == "one_cycle":
        assert at(schedule, 20) == 1.0
        return
    before_milestones = schedule.name != "step" or schedule.warmup.value < 3
    if before_milestones and schedule.warmup.value * EPOCH < TOTAL:
        assert at(schedule, round(schedule.warmup.value * EPOCH)) == pytest.approx(1.0)


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(UserError, match=r"schedule\.name is 'cosin'.*Did you mean 'cosine'"):
        at(SimpleNamespace(name="cosin"), 0)


def test_one_cycle_poly_and_wsd_are_torchs():
    def rates(make) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        theirs, found = make(optimizer), []
        for _ in range(TOTAL):
            found.append(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()
        return found

    lr_scheduler = torch.optim.lr_scheduler
    poly = rates(lambda o: lr_scheduler.PolynomialLR(o, total_iters=TOTAL, power=2.0))
    assert [at(section("poly"), step) for step in range(TOTAL)] == pytest.approx(poly, abs=1e-12)
    # torch reaches its end in the last step, not after it, and its peak one step before pct_start x total.
    for shape, theirs in (("linear", "linear"), ("cosine", "cos")):
        cycle = rates(
            lambda o, theirs=theirs: lr_scheduler.OneCycleLR(
                o,
                1.0,
                total_steps=TOTAL + 1,
                pct_start=21 / (TOTAL + 1),
                anneal_strategy=theirs,
                cycle_momentum=False,
                div_factor=10,
                final_div_factor=10,
            )
        )
        ours = section("one_cycle", start=0.1, final=0.01, shape=shape)
        assert [at(ours, step) for step in range(TOTAL)] == pytest.approx(cycle, abs=1e-12)


# ------------------------------------------------------------------------------------------------ published schedules


@pytest.fixture(scope="module")
def figure():
    path = Path(__file__).resolve().parents[2] / "docs" / "figures" / "schedules.py"
    spec = importlib.util.spec_from_file_location("figure_schedules", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_published_schedules_are_those_of_their_programs(figure):
    """RSB A2 under timm's scheduler, torchvision V2 under torch's, FFCV by its formula: at every step of the run."""
    for one in figure.PUBLISHED:
        assert figure.difference(one, 20)[0] <= 1e-6, one.title
        if "per" in one.section:  # step by step the rates meet at the starts of epochs, and only there
            whole, starts = figure.difference(one, 20, per="step")
            assert starts <= 1e-6 < whole
    assert figure.IMAGE.read_text() == figure.drawing(), "run python docs/figures/schedules.py"


def test_mlperfs_rate():
    """Linear from nothing over 17 epochs, then the square of what is left (LARS, You et al. 2017)."""
    schedule = load("imagenet_resnet50_mlperf").recipe.schedule
    for step in range(0, 59 * 37, 5):
        mine = factor(schedule, step, steps_per_epoch=37, total_steps=59 * 37)
        assert mine == pytest.approx(step / 629 if step < 629 else (1 - (step - 629) / (59 * 37 - 629)) ** 2, abs=1e-12)


# ------------------------------------------------------------------------------------------------------- in a recipe


def test_a_change_of_the_batch_does_not_move_epochs():
    """Moments and epochs are those of the plan: 10 steps an epoch at first, 20 from the third epoch on."""
    recipe = load("digits_resnet20", ["length=6ep", "schedule={name: cosine, per: epoch}"]).recipe
    plan = Plan(1600, 160, 16, 1, [Segment(20, 2, 0, 80, 16)])
    total = plan.step_at(6)
    assert total == 100
    rate = build_factor(recipe, plan, total)
    assert [rate(step) for step in range(20)] == [rate(0)] * 10 + [rate(10)] * 10
    for epoch in range(2, 6):
        first = plan.step_at(epoch)
        assert {rate(step) for step in range(first, first + 20)} == {rate(first)}
    wsd = build_factor(
        recipe.model_copy(
            update={"schedule": load("digits_resnet20", ["schedule={name: wsd, decay: 2ep}"]).recipe.schedule}
        ),
        plan,
        total,
    )
    assert [wsd(59), wsd(60), wsd(80)] == [1.0, 1.0, 0.5]
    peak = build_factor(
        recipe.model_copy(
            update={"schedule": load("digits_resnet20", ["schedule={name: one_cycle, peak: 3ep}"]).recipe.schedule}
        ),
        plan,
        total,
    )
    assert peak(40) == 1.0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["schedule={name: one_cycle, peak: 2ep, warmup: 1ep}"], "schedule.warmup = 1ep, but one_cycle has its own"),
        (["schedule={name: inverse_sqrt}"], "it needs a warm-up"),
        (["schedule={name: cosine, warmup_prefix: false}"], "schedule.warmup_prefix = false does nothing"),
        (["schedule={name: wsd, decay: 0ep, final: 0.1}"], "schedule.final = 0.1 does nothing"),
        (["schedule={name: poly, peak: 2ep}"], "with schedule.name = poly: it belongs to"),
        (["optimizer={name: lars, lr: 1, nesterov: true, momentum: 0}"], "optimizer.nesterov"),
        (["optimizer={name: sgd, lr: 1, decay: decoupled}"], "optimizer.decay = decoupled does nothing"),
        (["optimizer={name: lion, lr: 1, eps: 1}"], "with optimizer.name = lion: it belongs to"),
        (["optimizer={name: adan, lr: 1, betas: [0.9, 0.9, 1.0]}"], "optimizer.betas"),
    ],
)
def test_keys_that_do_not_fit(overrides, said):
    with pytest.raises(UserError) as error:
        load("digits_resnet20", overrides)
    assert said in str(error.value), str(error.value)
