"""Keys that do not fit together, and keys that are legal but do nothing."""

import pytest
from pydantic import ValidationError

from restrain.errors import UserError
from restrain.recipe import Recipe, load, plain

GOOD = [
    ["model.name=cifar_preresnet20", "model.drop_path={rate: 0.5, mode: batch}"],
    ["batch.micro=32"],
    ["batch.group=64", "batch.micro=64"],
    ["batch.group=1"],
    ["mix.mixup=0.2", "mix.off=50%"],
    ["model.drop_path={rate: 0.5, decay: constant}"],
    ["model.join.name=none"],
    ["model.join.name=none", "model.drop_path.rate=0.0", "model.zero_init=false"],
    ["optimizer.lr_per=256", "optimizer.lr_rule=sqrt"],
    ["schedule.warmup=1ep", "schedule.warmup_from=0.1"],
    ["schedule={name: step, at: [1ep, 30%, 30st]}"],
    ["data.augment=[]", "data.shuffle=false"],
    ["resolution.eval=72", "resolution.eval_resize=80"],
    ["model.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]"],
    ["profile={at: 5st}"],
]

BAD = {
    ("model.name=densenet121", "model.blurpool=true"): "model.blurpool = true does nothing: it is for ResNets, and "
    "model.name = densenet121.",
    ("model.name=cifar_resnet20", "model.stem=deep"): "model.stem = deep does nothing: it is for the ImageNet sizes of "
    "ResNets, and model.name = cifar_resnet20.",
    ("mix.mixup=0.2", "batch.group=1"): "mix.mixup = 0.2 does nothing: partners come from the same group, and "
    "batch.group = 1.",
    ("mix.cutmix=1", "batch.group=1"): "mix.cutmix = 1 does nothing: partners come from the same group, and "
    "batch.group = 1.",
    ("mix.off=1ep",): "mix.off = 1ep does nothing: mix.mixup and mix.cutmix are 0.",
    (
        "model.join.name=none",
        "model.drop_path.rate=0.1",
    ): "model.drop_path.rate = 0.1 does nothing: with model.join.name = none no path is left when one drops.",
    (
        "model.join.name=none",
        "model.zero_init=true",
    ): "model.zero_init = true would make a plain network output zero; use auto or false.",
    ("model.freeze=[block:3-1]",): "model.freeze has block:3-1, which ends before it begins.",
    ("data.std=[0.5]",): "data.std has length 1, but model.in_chans = 3.",
    ("data.shuffle=false", "data.window=64"): "data.window = 64 does nothing: data.shuffle is false.",
    ("data.augment=[{name: flip, p: 0}]",): "data.augment[0].p = 0 does nothing: leave the flip out.",
    (
        "data.augment=[{name: random_resized_crop, scale: [0.5, 0.1]}]",
    ): "data.augment[0].scale = [0.5, 0.1] ends before it begins.",
    (
        "data.augment=[{name: random_resized_crop, scale: [0.5, 1.5]}]",
    ): "data.augment[0].scale takes more than the whole image; its largest value is 1.",
    ("resolution.train=null",): "resolution.train is missing: data.name = folder needs the side in pixels.",
    ("resolution.eval_resize=32",): "resolution.eval_resize = 32 is smaller than the crop of 64 taken of it.",
    (
        "optimizer.lr_rule=linear",
    ): "optimizer.lr_rule = linear does nothing: optimizer.lr_per, the batch that lr is for, is null.",
    ("optimizer.lr_per=256",): "optimizer.lr_per = 256 needs optimizer.lr_rule: linear or sqrt.",
    (
        "optimizer.no_decay=norm_and_bias",
    ): "optimizer.no_decay = norm_and_bias does nothing: optimizer.weight_decay is 0.",
    (
        "optimizer.nesterov=true",
        "optimizer.momentum=0",
    ): "optimizer.nesterov = true does nothing: optimizer.momentum is 0.",
    ("schedule.warmup_from=0.5",): "schedule.warmup_from = 0.5 does nothing: schedule.warmup is 0.",
    ("schedule={name: step, at: [1ep, 1ep]}",): "schedule.at must rise, but 1ep comes after 1ep.",
    ("schedule={name: step, at: [100%]}",): "schedule.at has 100%, which does nothing: length = 2ep.",
    ("schedule={name: step, at: []}",): "schedule.at needs at least 1.",
    ("parallel.strategy=single", "parallel.devices=2"): "parallel.devices = 2, but parallel.strategy = single is one "
    "process.",
    ("length=50st", "profile={at: 100st}"): "profile.at = 100st is never reached: length = 50st.",
}


@pytest.mark.parametrize("overrides", GOOD, ids=" ".join)
def test_what_fits(minimal: str, overrides: list[str]) -> None:
    load(minimal, overrides)


@pytest.mark.parametrize("overrides", BAD, ids=" ".join)
def test_what_does_not(minimal: str, overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        load(minimal, overrides)
    assert str(caught.value) == f"command line: {BAD[overrides]}"


def test_digits_know_themselves() -> None:
    for override, told in {
        "model.classes=7": "model.classes = 7, but data.name = digits has 10 classes.",
        "data.decode=pil": "data.decode = pil does nothing: the digits are arrays, not files.",
        "data.mean=[0.5, 0.5]": "data.mean has length 2, but model.in_chans = 1.",
    }.items():
        with pytest.raises(UserError) as caught:
            load("digits_resnet20", [override])
        assert str(caught.value) == f"command line: {told}"


def test_recipes_made_in_python_are_checked_too(minimal: str) -> None:
    values = plain(load(minimal).recipe)
    assert Recipe.model_validate(values) == load(minimal).recipe
    values["batch"]["group"] = 5
    with pytest.raises(ValidationError, match=r"batch\.group = 5 does not divide"):
        Recipe.model_validate(values)
    with pytest.raises(ValidationError, match="frozen"):
        load(minimal).recipe.seed = 1


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError) as error:
        load("imagenet_resnet50", ["data.root=s3://me:hunter2@bucket/imagenet"])
    assert "data.root holds a user and a password" in str(error.value)
    assert "hunter2" not in str(error.value)


TRIPWIRES = {
    "{at: 1ep, metric: eval/f1, min: 1}": "expect.at[0].metric = eval/f1 is not measured; train/loss, train/top1, "
    "train/grad_norm, eval/loss, eval/top1 are",
    "{at: 1ep, metric: eval/top1}": "expect.at[0] has no bound: give min, max or both",
    "{at: 1ep, metric: eval/top1, min: 3, max: 2}": "expect.at[0].min = 3 is above max = 2",
    "{at: 99ep, metric: eval/top1, min: 3}": "expect.at[0].at = 99ep is never reached: length = 20ep",
}


@pytest.mark.parametrize("wire", TRIPWIRES)
def test_tripwires_that_make_no_sense(wire: str) -> None:
    with pytest.raises(UserError) as error:
        load("digits_resnet20", [f"expect.at=[{wire}]"])
    assert TRIPWIRES[wire] in str(error.value)
