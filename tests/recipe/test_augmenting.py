"""Augmentations, repeats and growing images that cannot be, or would do nothing: each told in one sentence."""

import pytest

from restrain.errors import UserError
from restrain.recipe import load

CROP = "{name: random_resized_crop}"
GROWING = "resolution.schedule={first: 32, ramp: [0ep, 1ep]}"
GREY = ("model.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]")

GOOD = [
    [f"data.augment=[{CROP}, {{name: rand_augment, policy: rand-m7-mstd0.5-inc1}}]"],
    [f"data.augment=[{CROP}, {{name: rand_augment, ops: 3, magnitude: 30}}, {{name: random_erasing}}]"],
    [f"data.augment=[{CROP}, {{name: trivial_augment}}]", *GREY],
    [f"data.augment=[{CROP}, {{name: color_jitter, brightness: 0.4}}]", *GREY],
    ["data.repeats=2"],
    [GROWING],
    [GROWING, f"data.augment=[{{name: resize, size: 80}}, {CROP}]"],
    ["resolution.eval_resize=72", "resolution.interpolation=bicubic"],
]

BAD = {
    (f"data.augment=[{{name: random_erasing}}, {CROP}]",): "data.augment[0] = random_erasing is not the last: what "
    "comes after would change what was erased.",
    (f"data.augment=[{CROP}, {{name: random_erasing, p: 0}}]",): "data.augment[1].p = 0 does nothing: leave "
    "random_erasing out.",
    (f"data.augment=[{CROP}, {{name: random_erasing, ratio: [3, 1]}}]",): "data.augment[1].ratio = [3, 1] ends before "
    "it begins.",
    (f"data.augment=[{CROP}, {{name: color_jitter}}]",): "data.augment[1] = color_jitter does nothing: set brightness, "
    "contrast, saturation or hue.",
    (
        f"data.augment=[{CROP}, {{name: rand_augment, policy: rand-m7, ops: 3}}]",
    ): "data.augment[1].ops = 3 does nothing: the policy has its own, n.",
    (
        f"data.augment=[{CROP}, {{name: rand_augment, policy: rand-m9.5}}]",
    ): "data.augment[1].policy = rand-m9.5 has the part 'm9.5'; m is a whole number from 0 to 100.",
    (
        f"data.augment=[{CROP}, {{name: color_jitter, saturation: 0.4}}]",
        *GREY,
    ): "data.augment[1].saturation does nothing: model.in_chans = 1 is grey.",
    (
        f"data.augment=[{CROP}, {{name: lighting}}]",
        *GREY,
    ): "data.augment[1] = lighting moves colours along the components of RGB, and model.in_chans = 1 is grey.",
    (
        f"data.augment=[{CROP}, {{name: three_augment}}]",
        *GREY,
    ): "data.augment[1] = three_augment turns a third of the images grey, and model.in_chans = 1 is grey.",
    (
        f"data.augment=[{CROP}, {{name: trivial_augment}}]",
        "model.in_chans=2",
        "data.mean=[0.5, 0.5]",
        "data.std=[0.5, 0.5]",
    ): "data.augment[1] = trivial_augment takes grey or RGB images, and model.in_chans = 2.",
    ("data.repeats=3",): "data.repeats = 3 needs as many groups, one for each copy of an image, and batch.global = 64 "
    "has 2 of batch.group = 32; batch.group of 2, 4, 8, 16 does.",
    ("data.repeats=2", "data.shuffle=false"): "data.repeats = 2 would show the same first images in each epoch: "
    "data.shuffle is false.",
    ("data.repeats=2", "data.augment=[]"): "data.repeats = 2 would show 2 equal copies of an image: data.augment is "
    "empty.",
    ("resolution.interpolation=bicubic",): "resolution.interpolation = bicubic does nothing: resolution.eval_resize is "
    "null.",
    ("resolution.schedule={first: 64, ramp: [0ep, 1ep]}",): "resolution.schedule.first = 64 is not smaller than "
    "resolution.train = 64.",
    ("resolution.schedule={first: 40, ramp: [0ep, 1ep]}",): "resolution.schedule.first = 40 is not a multiple of "
    "resolution.schedule.multiple = 32.",
    ("resolution.schedule={first: 32, ramp: [2ep, 1ep]}",): "resolution.schedule.ramp = [2ep, 1ep] ends before it "
    "begins.",
    (GROWING, f"data.augment=[{CROP}, {{name: centre_crop, size: 64}}]"): "resolution.schedule needs "
    "random_resized_crop as the last step that sizes images, and centre_crop makes images of one size: the side could "
    "not grow.",
    (GROWING, "data.augment=[]"): "resolution.schedule needs random_resized_crop as the last step that sizes images, "
    "and nothing in data.augment resizes: the side could not grow.",
}


@pytest.mark.parametrize("overrides", GOOD, ids=" ".join)
def test_what_fits(minimal: str, overrides: list[str]) -> None:
    load(minimal, ["batch.group=32", *overrides])


@pytest.mark.parametrize("overrides", BAD, ids=" ".join)
def test_what_does_not(minimal: str, overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        load(minimal, ["batch.group=32", *overrides])
    assert str(caught.value) == f"command line: {BAD[overrides]}"


def test_digits_stay_as_they_are() -> None:
    with pytest.raises(UserError, match=r"resolution.schedule = .* does nothing: the digits are 8 x 8"):
        load("digits_resnet20", [GROWING])
    with pytest.raises(UserError, match=r"data.repeats = 5 needs as many groups.* batch.group of 1, 2, 4, 8 does"):
        load("digits_resnet20", ["data.repeats=5", "data.augment=[{name: flip}]"])
