# ruff: noqa: E501  (a paragraph is longer than a line)
"""What a user sees: one paragraph with the key, the value, what is allowed, the nearest, and the place."""

import pytest

from restrain.errors import UserError
from restrain.recipe import load


def refusal(name: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(name, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
    return str(caught.value)


SGD_KEYS = "name, lr, lr_per, lr_rule, weight_decay, no_decay, layer_decay, momentum, nesterov, decay"
CASES = {
    "optimizer.lrr=1": f"optimizer.lrr is not a key. Did you mean 'lr'? The keys of optimizer with optimizer.name = sgd "
    f"are {SGD_KEYS}.",
    "optimizer.betas=[0.9,0.99]": "optimizer.betas does nothing with optimizer.name = sgd: it belongs to "
    "optimizer.name = adamw, nadam, lamb, lion, adan or muon.",
    "data.root=/data": "data.root does nothing with data.name = digits: it belongs to data.name = folder, webdataset, package, tokens or text.",
    "optimizer.lr=fast": "optimizer.lr: 'fast' is not a number.",
    "optimizer.lr=off": "optimizer.lr: 'off' is not a number.",
    "optimizer.lr=null": "optimizer.lr: null is not a number.",
    'optimizer.lr="0.1"': "optimizer.lr: '0.1' is not a number.",
    "optimizer.lr=-1": "optimizer.lr = -1 must be more than 0.",
    "optimizer.lr=.inf": "optimizer.lr: '.inf' is not a number.",
    "optimizer.lr=1e999": "optimizer.lr = inf must be finite.",
    "optimizer.lr=[1]": "optimizer.lr is a list, but it takes a number.",
    "optimizer.lr.a=1": "optimizer.lr holds keys of its own, but it takes a number.",
    "batch.group=1_6": "batch.group: '1_6' is not an integer.",
    "batch.group=16.0": "batch.group: '16.0' is not an integer.",
    "batch.group=0b11": "batch.group: '0b11' is not an integer.",
    "deterministic=yes": "deterministic: 'yes' is not true or false.",
    "model.zero_init=0": "model.zero_init: '0' is not auto, true or false.",
    "clip=none": "clip: 'none' is not a number or null.",
    "optimizer.name=sdg": "optimizer.name: 'sdg' is not one of sgd, adamw, nadam, lamb, lars, lion, adan, muon. "
    "Did you mean 'sgd'?",
    "optimizer=adamw": "optimizer: 'adamw' is a name; write optimizer.name=adamw.",
    "model=resnet50": "model: 'resnet50' is not a section with the keys name, classes, in_chans, join, zero_init, freeze, "
    "drop_path, feedback, stem, downsample, blurpool, shape, transformer, recurrent, init.",
    "model.shape={depth:2}": "model.shape has the word 'depth:2': a space belongs after the colon, {depth: 2}.",
    "model.join={name: add, scale:rezero}": "model.join has the word 'scale:rezero': a space belongs after the colon, "
    "{scale: rezero}.",
    "model.join={name: scale, branch: 0}": "model.join.branch = 0: no branch would ever count, or learn; use another "
    "number.",
    "precision=bf-16": "precision: 'bf-16' is not one of auto, fp32, bf16, fp16, fp8, fp64. Did you mean 'bf16'?",
    "length=90": "length: '90' has no unit; it takes a duration in ep (epochs) or st (optimizer steps).",
    "length=30min": "length = 30min has a unit that makes no sense here; write ep (epochs) or st (optimizer steps).",
    "length=0ep": "length = 0ep must be longer than 0.",
    "length=long": "length: 'long' is not a duration; it takes a duration in ep (epochs) or st (optimizer steps).",
    "evaluate.every=10min": "evaluate.every = 10min has a unit that makes no sense here; write ep (epochs), "
    "st (optimizer steps) or % (of the whole run).",
    "batch.group=48": "batch.group = 48 does not divide batch.global = 64; 8, 16, 32, 64 do.",
    "batch.micro=24": "batch.micro = 24 is impossible: a multiple of batch.group = 16 that divides batch.global = 64 is "
    "needed; auto, 16, 32, 64 work.",
    "model.drop_path.decay=constant": "model.drop_path.decay = constant does nothing: model.drop_path.rate is 0.",
    "resolution.eval_resize=9": "resolution.eval_resize = 9 does nothing: the digits are 8 x 8 and stay so.",
    "resolution.train=32": "resolution.train = 32 does nothing: the digits are 8 x 8 and stay so.",
    "data.augment=[{name: flop}]": "data.augment[0].name: 'flop' is not one of random_resized_crop, flip, pad_crop, shift, "
    "resize, random_short_side, random_crop, centre_crop, rand_augment, trivial_augment, auto_augment, three_augment, "
    "color_jitter, lighting, random_erasing. Did you mean 'flip'?",
    "data.augment=[{name: flip, p: 2}]": "data.augment[0].p = 2 must be at most 1.",
    "data.augment=flip": "data.augment: 'flip' is not a list such as [{name: random_resized_crop}].",
    "model.freeze=[stam]": "model.freeze[0] = stam does not look right (pattern ^(stem|head|block:\\d+(-\\d+)?)$).",
    "seed=-1": "seed = -1 must be at least 0.",
    "checkpoint.best=top1": "checkpoint.best = top1 does not look right (pattern ^eval/[a-z0-9_]+$).",
    "checkpoint.best=eval/f1": "checkpoint.best = eval/f1 is not measured; eval/loss, eval/top1 are.",
    "checkpoint.best=eval/top5": "checkpoint.best = eval/top5 is measured above 10 classes only, and "
    "model.classes = 10.",
    "batch.micro=-1": "batch.micro = -1 must be more than 0.",
    "data.threads=2000": "data.threads = 2000 must be at most 1024.",
}


@pytest.mark.parametrize("override", CASES)
def test_paragraphs(override: str) -> None:
    assert refusal("digits_resnet20", override) == f"command line: {CASES[override]}"


@pytest.mark.parametrize("override", ["lr", "=1", "a b=1", "--seed=1", ".seed=1", "seed.=1", ""])
def test_not_an_override(override: str) -> None:
    told = f"command line: {override!r} is not key=value, such as optimizer.lr=0.2."
    assert refusal("digits_resnet20", override) == told


def test_the_base_is_no_override() -> None:
    told = "command line: base is chosen in a recipe file; name the other recipe instead."
    assert refusal("digits_resnet20", "base=x") == told


def test_a_misspelt_section_shows_the_whole_path() -> None:
    assert refusal("digits_resnet20", "optimiser.lr=1").startswith(
        "command line: optimiser.lr is not a key. Did you mean 'optimizer'? The keys of a recipe are task, model, data,"
    )


def test_places_in_files(write) -> None:
    file = write("base: digits_resnet20\n\nbatch:\n  global: 64\n  grup: 8\n")
    assert refusal(file) == (
        "mine.yaml:5: batch.grup is not a key. Did you mean 'group'? The keys of batch are global, group, micro."
    )
    file = write("base: digits_resnet20\nschedule:\n  name: step\n  at: [5ep,\n    50]\n")
    assert refusal(file).startswith("mine.yaml:5: schedule.at[1]: '50' has no unit; it takes a duration in ep (epochs)")
    file = write("base: digits_resnet20\noptimizer:\n  lr:\n    -1\n")
    assert refusal(file) == "mine.yaml:4: optimizer.lr = -1 must be more than 0."


def test_several_problems_are_one_paragraph() -> None:
    assert refusal("digits_resnet20", "length=1", "clip=x", "seed=y") == (
        "3 problems in digits_resnet20: (1) command line: length: '1' has no unit; it takes a duration in ep (epochs) "
        "or st (optimizer steps). (2) command line: clip: 'x' is not a number or null. (3) command line: seed: 'y' is not "
        "an integer."
    )
    many = refusal("digits_resnet20", *(f"bad{n}=1" for n in range(9)))
    assert many.startswith("9 problems in digits_resnet20: (1) ")
    assert many.endswith(" And 4 more.")


def test_what_is_missing_is_said(write) -> None:
    told = refusal(write("model: {name: resnet18}\ndata: {root: x}\n"))
    assert "(1) mine.yaml:1: model.classes is missing: number of classes." in told
    assert (
        "mine.yaml:2: data.name is missing: one of folder, webdataset, package, digits, tokens, text, sequences."
        in told
    )
    assert "mine.yaml: batch is missing: samples of an optimizer step." in told


def test_unknown_recipes() -> None:
    assert refusal("digits_resnet21").startswith(
        "There is no recipe 'digits_resnet21'. Did you mean 'digits_resnet20'?"
    )
    assert refusal("elsewhere/digits_resnet20.yml") == (
        "There is no file elsewhere/digits_resnet20.yml. Did you mean 'digits_resnet20'?"
    )
