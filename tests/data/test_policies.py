"""What is drawn: the operations, magnitudes, signs and boxes of torchvision and timm, in distribution."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms

from restrain import draws
from restrain.data.augment import base, colour, erasing, geometry, policies
from restrain.data.augment.operations import MOVING
from restrain.recipe.policy import parse_policy
from tests.data import references

N = 3000
KEYS = [draws.key(11, 4, n) for n in range(N)]
SIDE = 96
FRAME = base.Frame(SIDE, (0.5,) * 3, (0.2,) * 3)


def ours(op, keys=KEYS) -> references.Drawn:
    return [[(step.name, step.argument) for step in op.params(key, SIDE, SIDE)] for key in keys]


def as_applied(drawn: references.Drawn) -> references.Drawn:
    """torchvision's magnitudes as arguments of the operations."""
    steps = [[policies.tabled(name, magnitude) for name, magnitude in one] for one in drawn]
    return [[(step.name, step.argument) for step in one] for one in steps]


def assert_alike(mine: references.Drawn, theirs: references.Drawn, least: float = 1e-3) -> None:
    """How many operations an image gets, which, and each one's arguments: two-sample tests, Bonferroni's way."""
    tests = [[Counter(map(len, mine)), Counter(map(len, theirs))]]
    tests.append([Counter(name for one in drawn for name, _ in one) for drawn in (mine, theirs)])
    tests.append([Counter(name for one in drawn for name, _ in one[:1]) for drawn in (mine, theirs)])
    found = {}
    for number, (a, b) in enumerate(tests):
        kinds = sorted(set(a) | set(b))
        if len(kinds) > 1:
            table = np.array([[count[kind] for kind in kinds] for count in (a, b)])
            found[number] = stats.chi2_contingency(table[:, table.sum(0) > 10]).pvalue
    for name in {name for one in theirs for name, _ in one}:
        a, b = (np.array([x for one in drawn for other, x in one if other == name]) for drawn in (mine, theirs))
        if min(len(a), len(b)) > 30 and max(np.ptp(a), np.ptp(b)) > 0:
            found[name] = stats.ks_2samp(a.round(9), b.round(9)).pvalue
            assert np.ptp(a) == pytest.approx(np.ptp(b), rel=0.6)
        elif len(a) and len(b) and not np.ptp(b):
            assert set(a) == set(b), name
    assert min(found.values()) > least / len(found), found


@pytest.mark.parametrize(
    "text",
    [
        "rand-m7-mstd0.5-inc1",
        "rand-m9-mstd0.5-inc1",
        "rand-m15-n3-mmax30-p0.8",
        "rand-m8-mstd101-inc1",
        "rand-tweights-n3-mstd1",
        "rand-t3a-m6",
        "rand-t3aw-n3",
    ],
)
def test_rand_augment_draws_as_timms(text):
    op = policies.TimmRandAugment(parse_policy(text), (1, 2, 3))
    assert_alike(ours(op), references.timm_policy(text, N))


@pytest.mark.parametrize("magnitude", [9, 30])
def test_rand_augment_draws_as_torchvisions(magnitude):
    theirs = references.torchvision_policy(transforms.RandAugment(2, magnitude), N, SIDE)
    assert_alike(ours(policies.RandAugment(2, magnitude)), as_applied(theirs))


def test_trivial_augment_draws_as_torchvisions():
    theirs = references.torchvision_policy(transforms.TrivialAugmentWide(), N, SIDE)
    assert_alike(ours(policies.TrivialAugment()), as_applied(theirs))


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_auto_augment_draws_as_torchvisions(policy):
    kind = transforms.AutoAugmentPolicy(policy)
    theirs = references.torchvision_policy(transforms.AutoAugment(kind), N, SIDE)
    assert_alike(ours(policies.AutoAugment(policy)), as_applied(theirs))
    table = transforms.AutoAugment(kind).policies
    for mine, reference in zip(policies.auto_augment_table(policy), table, strict=True):
        assert mine == tuple((name, p, bin or 0) for name, p, bin in reference)


def test_three_augment_draws_as_timms():
    theirs = references.timm_policy("3a", N)
    assert_alike(ours(policies.ThreeAugment()), theirs)


@pytest.mark.parametrize("text", ["rand", "rand-m7-inc1", "rand-tweights", "rand-t3a", "rand-t3aw-n4-p1"])
def test_the_sets_are_timms(text):
    theirs = rand_augment_transform(text, {})
    policy = parse_policy(text)
    assert list(policy.choices) == [op.name for op in theirs.ops]
    weights = np.array(list(policy.choices.values()))
    assert policy.weighted == (theirs.choice_weights is not None)
    if policy.weighted:
        assert np.allclose(weights / weights.sum(), theirs.choice_weights)
    assert (policy.n, policy.p) == (theirs.num_layers, theirs.ops[0].prob)
    assert policy.m == theirs.ops[0].magnitude


def test_kernels_are_drawn_evenly():
    op = policies.TimmRandAugment(parse_policy("rand-n3-p1"), (1, 2, 3))
    drawn = [step for key in KEYS for step in op.params(key, SIDE, SIDE)]
    moved = Counter(step.kernel for step in drawn if step.name in MOVING)
    assert set(moved) == {"bilinear", "bicubic"}
    assert stats.binomtest(moved["bicubic"], moved.total()).pvalue > 1e-3
    assert {step.kernel for step in drawn if step.name not in MOVING} == {"nearest"}


def test_uniform_levels_from_inf():
    assert parse_policy("rand-mstdinf") == parse_policy("rand-mstd101")
    assert parse_policy("rand-mstdinf").mstd == math.inf


JUNK = {
    "randaugment": "begins with 'randaugment'",
    "v0": "begins with 'v0'",
    "rand-m": "the part 'm', which means nothing",
    "rand-w0": "the part 'w0'",
    "rand-mx": "'mx'; m is a whole number from 0 to 100",
    "rand-m9.5": "'m9.5'; m is a whole number",
    "rand-m-7": "the part 'm', which",
    "rand-m7-m9": "sets m twice",
    "rand--m7": "the part ''",
    "rand-inc2": "inc is a whole number from 0 to 1",
    "rand-p1.5": "p is a number from 0 to 1",
    "rand-pnan": "p is a number from 0 to 1",
    "rand-mstdx": "mstd is a number from 0",
    "rand-mmax0": "mmax is a whole number from 1",
    "rand-m15": "m15, above the largest, 10; set mmax",
    "rand-tall": "the sets of operations are weights, 3aw, 3a",
    "rand-tweights-inc1": "inc, which does nothing",
    "rand-tweights-n99": "n is a whole number from 1 to 15",
    "rand-n0": "n is a whole number from 1",
}


@pytest.mark.parametrize("text", JUNK)
def test_junk_is_named(text):
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_policy(text)
    assert JUNK[text] in str(caught.value)


def test_color_jitter_draws_as_torchvisions():
    ranges = (0.4, 0.3, 1.5, 0.1)
    theirs = references.color_jitter(N, *ranges)
    mine = [colour.ColorJitter(*ranges).params(key, 9, 9) for key in KEYS]
    for which in range(4):
        a, b = ([factors[which] for _, factors in drawn] for drawn in (mine, theirs))
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    a, b = (Counter(tuple(order) for order, _ in drawn) for drawn in (mine, theirs))
    assert len(a) == 24
    assert stats.chi2_contingency([[count[order] for order in sorted(a)] for count in (a, b)]).pvalue > 1e-3
    assert colour.ColorJitter(0.4).params(5, 9, 9)[1][1:] == (None, None, None)


def test_lighting_is_normal():
    shares = np.array([colour.Lighting(0.3).params(key, 9, 9) for key in KEYS])
    assert min(stats.kstest(column / 0.3, "norm").pvalue for column in shares.T) > 1e-3
    assert np.abs(np.corrcoef(shares.T) - np.eye(3)).max() < 0.08


@pytest.mark.parametrize("reference", ["torchvision", "timm"])
def test_erasing_draws_as(reference):
    scale, ratio = (0.02, 1 / 3), (0.3, 10 / 3)
    if reference == "timm":
        theirs = references.timm_erasing_boxes(N, SIDE)
    else:
        theirs = references.erasing_boxes(N, SIDE, scale, ratio)
    erase = erasing.RandomErasing(FRAME, 1.0, scale, ratio)
    mine = np.array([erase.params(key, SIDE, SIDE)[:4] for key in KEYS])
    for a, b in zip(mine.T, theirs.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    areas = [(boxes[:, 2] * boxes[:, 3]) for boxes in (mine, theirs)]
    assert stats.ks_2samp(*areas).pvalue > 1e-3


def test_erasing_happens_with_its_probability():
    erase = erasing.RandomErasing(FRAME, 0.25, (0.02, 1 / 3), (0.3, 10 / 3))
    happened = sum(bool(erase.params(key, SIDE, SIDE)) for key in KEYS)
    assert stats.binomtest(happened, N, 0.25).pvalue > 1e-3
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    assert erase.apply(image, ()) is image
    never = erasing.RandomErasing(FRAME, 1.0, (0.9, 1.0), (100.0, 100.0))
    assert never.params(1, SIDE, SIDE) == ()


def test_crops_draw_as_timms():
    theirs = references.crops(N, 80, 120)
    crop = geometry.RandomResizedCrop(10, interpolation="random")
    mine = [crop.params(key, 80, 120) for key in KEYS]
    for a, b in zip(np.array([params[:4] for params in mine]).T, theirs.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    kernels = Counter(params[4] for params in mine)
    assert set(kernels) == {"bilinear", "bicubic"}
    assert stats.binomtest(kernels["bicubic"], N).pvalue > 1e-3
    plain = geometry.RandomResizedCrop(10)
    assert [plain.params(key, 80, 120) for key in KEYS[:50]] == [params[:4] for params in mine[:50]]


def drawn(key: int) -> dict[str, list | tuple]:
    timm = policies.TimmRandAugment(parse_policy("rand-m9-mstd0.5-inc1-p1"), (1, 2, 3)).params(key, 64, 64)
    tabled = {"rand": policies.RandAugment(), "trivial": policies.TrivialAugment(), "auto": policies.AutoAugment()}
    tabled["three"] = policies.ThreeAugment()
    return {
        "timm": [(step.name, round(step.argument, 6), step.kernel) for step in timm],
        **{
            name: [(step.name, round(step.argument, 6)) for step in op.params(key, 64, 64)]
            for name, op in tabled.items()
        },
        "jitter": colour.ColorJitter(0.4, 0.4, 0.4, 0.1).params(key, 64, 64)[0],
        "erasing": erasing.RandomErasing(FRAME, 1.0, (0.02, 1 / 3), (0.3, 10 / 3)).params(key, 64, 64)[:4],
    }


def test_golden_draws():
    """Frozen: other values are another run. The keys are those of seed 0, epoch 1, positions 2 and 3, operation 0."""
    assert [drawn(draws.key(0, draws.Purpose.AUGMENT, 1, position, 0, 0)) for position in (2, 3)] == GOLDEN


GOLDEN = [
    {
        "timm": [("TranslateYRel", 0.428005, "bilinear"), ("Brightness", 0.103164, "nearest")],
        "rand": [("Equalize", 0.0), ("AutoContrast", 0.0)],
        "trivial": [("Color", 1.132)],
        "auto": [],
        "three": [("Desaturate", 1.0)],
        "jitter": (0, 1, 2, 3),
        "erasing": (8, 32, 56, 21),
    },
    {
        "timm": [("Color", 1.803015, "nearest"), ("Solarize", 26, "nearest")],
        "rand": [("Contrast", 0.73), ("Identity", 0.0)],
        "trivial": [("TranslateY", 0)],
        "auto": [("Color", 1.8), ("Solarize", 56.666668)],
        "three": [("Desaturate", 1.0)],
        "jitter": (3, 2, 1, 0),
        "erasing": (12, 4, 23, 55),
    },
]
