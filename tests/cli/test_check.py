"""What ``restrain check`` says before a run, and its exit code."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restrain.cli.main import run
from restrain.models import build_model
from restrain.recipe import available, load
from restrain.recipe.schema_data import WITHOUT_ROOT


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]):
    """``told(*argv)``: the exit code, and the facts as a mapping of labels to their lines joined."""

    def ask(*argv: str) -> tuple[int, dict[str, str], str]:
        code = run(["check", *argv])
        out, err = capsys.readouterr()
        facts: dict[str, str] = {}
        label = ""
        for line in out.splitlines()[1:]:
            name, _, rest = line[2:].partition("  ")
            label = name.strip() or label
            facts[label] = f"{facts.get(label, '')}\n{rest.strip() if name.strip() else line.strip()}".strip()
        return code, facts, err

    return ask


def test_digits(told) -> None:
    code, facts, err = told("digits_resnet20")
    assert (code, err) == (0, "")
    model = build_model({"name": "cifar_resnet20", "classes": 10, "in_chans": 1})
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,} parameters, all trainable" in facts["model"]
    assert facts["blocks"].startswith("9: layer1.0 ... layer3.2")
    assert "9 joins: layer1.0.join ... layer3.2.join" in facts["blocks"]
    assert facts["weight decay"] == f"decay 0.0001: 59 tensors, {count:,} parameters"
    assert "1,437 training samples in 1 shard, 10 classes, 1 channel" in facts["data"]
    assert "22 steps an epoch, 440 in all (20ep)" in facts["length"]
    assert "processes that can share it: 1, 2, 4" in facts["batch"]
    assert re.match("^[▁-█]{48}\n", facts["learning rate"])
    assert facts["learning rate"].startswith("█")
    assert "start 0.1, peak 0.1 at step 0" in facts["learning rate"]
    assert re.search(r"8 images of the training set forward and backward on cpu in \w+: ", facts["dry run"])
    assert "finite" in facts["dry run"]


def test_groups_partition_what_is_trained(told) -> None:
    code, facts, _ = told("digits_resnet20", "optimizer.no_decay=norm_and_bias", "model.freeze=[block:0-1]", "--no-run")
    assert code == 0
    found = [int(one.replace(",", "")) for one in re.findall(r"([\d,]+) parameters", facts["weight decay"])]
    trainable = re.search(r"([\d,]+) trainable", facts["model"])
    assert trainable is not None
    assert len(found) == 2
    assert sum(found) == int(trainable[1].replace(",", ""))
    assert "dry run" not in facts


VIT = ["model.name=vit", "model.shape={depth: 4, width: 32, heads: 2, patch: 2}"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.drop_path.rate=0.5"], "none of their work is saved"),
        # (2.5 - (2/9 + 7/18) / 4) / 8.5: the blocks cost the same but for two that stride, which cost three quarters.
        (["model.drop_path={rate: 0.5, mode: batch}"], "27.6 % of the blocks' multiply-adds are saved"),
        # Of groups of 16 rows keep 14, 12, 10 and 8 with rates of 1/8 to 1/2; the blocks of a ViT cost the same.
        ([*VIT, "model.drop_path={rate: 0.5, mode: subset}"], "31.2 % of the blocks' multiply-adds are saved"),
    ],
)
def test_what_stochastic_depth_saves(settings: list[str], said: str, told) -> None:
    code, facts, err = told("digits_resnet20", "batch.group=16", *settings, "--no-run")
    assert (code, err) == (0, "")
    assert said in facts["blocks"]


QUICK = ("cifar10_plain20", "imagenet_resnet50_ffcv16", "imagenet_resnet50_rsb_a2", "digits_plain56")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in available()]
)
def test_every_shipped_recipe_without_its_data(name: str, told) -> None:
    code, facts, err = told(name, "--no-run")
    assert code == 0, err
    recipe = load(name).recipe
    assert facts["model"].startswith(recipe.model.name)
    if recipe.data.name not in WITHOUT_ROOT:
        assert "data.root is not set" in facts["data"]
        if recipe.length.unit == "ep":
            assert f"floor(N / {recipe.batch.global_})" in facts["length"]
    peak = re.search(r"peak (\S+) at", facts["learning rate"])
    assert peak is not None
    assert float(peak[1]) > 0


def test_published_sizes(told) -> None:
    _, facts, _ = told("imagenet_resnet50", "--no-run")
    assert "25,557,032 parameters" in facts["model"]  # torchvision's table of weights
    assert "4.089 G multiply-adds an image of 3 x 224 x 224" in facts["model"]


def pictures(root: Path, classes: int) -> Path:
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(8):
                Image.fromarray(np.full((40, 50, 3), 30 * label + number, np.uint8)).save(folder / f"{number}.png")
    return root


OWN = [
    *("data.name=folder", "data.mean=[0.5, 0.5, 0.5]", "data.std=[0.2, 0.2, 0.2]", "model.in_chans=3"),
    *("resolution.train=32", "resolution.eval=32", "resolution.eval_resize=32", "batch.global=8", "batch.group=4"),
    "data.augment=[{name: random_resized_crop}, {name: flip}]",
]


def test_a_folder_that_fits_and_one_that_does_not(told, tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures", 3)
    code, facts, err = told("digits_resnet20", *OWN, f"data.root={root}", "model.classes=3", "mix.mixup=0.2")
    assert code == 0, err
    assert "24 training samples in 3 shards, 3 classes, 3 channels" in facts["data"]
    assert "floor(24 / 8) = 3 steps an epoch" in facts["length"]
    assert "8 images of the training set" in facts["dry run"]
    code, facts, err = told("digits_resnet20", *OWN, f"data.root={root}", "model.classes=10")
    assert code == 2
    assert "does not fit" in facts["data"]
    assert "Set model.classes=3" in err
    assert err.count("\n") == err.count("error: ") + err.count("Indexing") + err.count("The index is")
    code, _, err = told("digits_resnet20", *OWN, f"data.root={tmp_path / 'nowhere'}")
    assert code == 2
    assert "there is no such folder" in err


def test_the_worlds_fault(told, tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures", 3)
    for file in root.glob("train/*/*.png"):
        file.write_bytes(b"no picture")
    code, _, err = told("digits_resnet20", *OWN, f"data.root={root}", "model.classes=3")
    assert code == 1
    assert "error: " in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["digits_resent20"], "Did you mean 'digits_resnet20'?"),
        (["digits_resnet20", "batch.micro=3"], "batch.micro = 3 is impossible"),
        (["digits_resnet20", "model.freeze=[stem, head, block:0-8]"], "leaves nothing to train"),
        (["digits_resnet20", "model.freeze=[block:9]"], "the model's blocks are 0-8"),
        (["digits_resnet20", "model.drop_path={rate: 0.5, mode: subset}"], "model.drop_path.mode is 'subset', but"),
        (
            ["digits_resnet20", *VIT, "model.drop_path={rate: 0.1, mode: subset}", "batch.group=4"],
            "batch.group=8 is the smallest that works",
        ),
    ],
)
def test_bad_input(argv: list[str], said: str, told) -> None:
    code, facts, err = told(*argv)
    assert code == 2
    assert facts == {}
    assert said in err
    assert err.count("\n") == 1


def test_gpt3_is_counted_without_its_memory(told) -> None:
    code, facts, err = told("gpt3_175b")
    assert (code, err) == (0, "")
    assert "174,604,259,328 parameters, all trainable" in facts["model"]
    assert facts["blocks"].startswith("96: blocks.0 ... blocks.95   (96 TransformerBlock)")
    assert "192 joins: blocks.0.join1 ... blocks.95.join2" in facts["blocks"]
    assert "384 projections" in facts["blocks"]
    assert "weights and buffers 698 GB" in facts["memory"]
    assert re.match(r"left out: one micro-batch takes about [\d.]+ TB, and this device has ", facts["dry run"])
