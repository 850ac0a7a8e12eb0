"""Whole runs with repeated augmentation and with growing images; evaluation with mirror images."""

from pathlib import Path

import pytest
import torch
from torch import nn

from restrain.data.expected import expected
from restrain.recipe import load
from restrain.run import ledger
from restrain.training import build
from restrain.training.classify import Classify
from restrain.training.evaluate import evaluate
from tests import worlds
from tests.data.making import write_shards

OPS = "{name: rand_augment, policy: rand-m9-mstd0.5-inc1}, {name: random_erasing}"
REPEATED = ["length=26st", "precision=fp64", "track.pixels=true", "data.repeats=3", "checkpoint.every=26st"]
REPEATED += [f"data.augment=[{{name: shift}}, {OPS}]"]


def audit(run: Path, steps: int) -> list[ledger.Problem]:
    """What the ledger has otherwise than order, plan and index say."""
    recipe = load(str(run / "recipe.lock.yaml")).recipe
    data = build.open_data(recipe)
    hashes = expected(build.build_order(recipe, data), build.build_plan(recipe, data, []), data.train.crcs)
    return list(ledger.audit(worlds.ledger(run), lambda step: hashes(step - 1), range(1, steps + 1)))


def test_repeats_on_other_worlds_and_after_a_kill(tmp_path: Path) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    assert worlds.train(straight, REPEATED).codes == [0]
    assert not audit(straight, 26)
    ended = worlds.train(cut, [*REPEATED, "batch.micro=16"], 2, {0: [("at_step", {"step": 15, "signal": "SIGTERM"})]})
    assert ended.codes == [75, 75], ended.text
    assert worlds.train(cut, [*REPEATED, "batch.micro=32"]).codes == [0]
    assert worlds.ledger(cut) == worlds.ledger(straight)
    assert len(worlds.ledger(cut)) == 26


@pytest.fixture
def growing(tmp_path: Path) -> list[str]:
    write_shards(tmp_path / "set", 4, 11, classes=5)
    write_shards(tmp_path / "set", 1, 9, prefix="val", classes=5)
    crop = "{name: random_resized_crop, interpolation: random}, {name: flip}, {name: trivial_augment}"
    data = f"{{name: webdataset, root: {tmp_path / 'set'}, train: 'train-*.tar', augment: [{crop}]}}"
    sizes = "{train: 32, eval: 32, eval_resize: 36, interpolation: bicubic, "
    sizes += "schedule: {first: 16, ramp: [0ep, 2ep], multiple: 8}}"
    own = [
        "model={name: cifar_resnet20, classes: 5, in_chans: 3}",
        f"data={data}",
        f"resolution={sizes}",
        "expect=null",
    ]
    own += ["batch.global=8", "batch.group=2", "length=3ep", "precision=fp64", "track.pixels=true"]
    own += ["evaluate.flip=true"]
    return [*own, "checkpoint.every=15st", "mix={mixup: 0.2, cutmix: 1.0}"]


def test_growing_images_on_other_worlds_and_after_a_kill_in_the_ramp(growing: list[str], tmp_path: Path) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    ended = worlds.train(straight, growing)
    assert ended.codes == [0], ended.text
    assert not audit(straight, 15)
    ended = worlds.train(cut, [*growing, "batch.micro=2"], 2, {1: [("at_step", {"step": 8, "signal": "SIGTERM"})]})
    assert ended.codes == [75, 75], ended.text
    assert worlds.train(cut, [*growing, "batch.micro=4"]).codes == [0]
    assert worlds.ledger(cut) == worlds.ledger(straight)
    mine, theirs = worlds.journal(cut), worlds.journal(straight)
    for a, b in zip(mine, theirs, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-8)
    assert mine[-1]["eval/loss"] == pytest.approx(theirs[-1]["eval/loss"], rel=1e-8)


class Batches(list):
    """One batch, as an evaluation loader gives it."""

    samples, max_bad = 60, 1e-4

    def close(self) -> None:
        pass


def test_mirror_images_are_averaged_in() -> None:
    """FFCV adds the logits of the mirror image: the same guesses as of their mean, whose loss is told here."""
    from restrain.data.batches import EvalBatch

    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels, valid = torch.randint(0, 12, (60,), generator=generator), torch.arange(60) != 7
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12))
    task = Classify(model)
    batches = Batches([EvalBatch(images, labels, valid, torch.arange(60))])
    settings = {"device": torch.device("cpu"), "number_format": "fp32"}
    found = evaluate(task, batches, flip=True, **settings)
    with torch.no_grad():
        inputs = task.normalise(images)
        added = model(inputs) + model(torch.flip(inputs, dims=[3]))
    right = (added.argmax(1) == labels)[valid]
    assert found["count"] == 59
    assert found["top1"] == pytest.approx(100.0 * right.float().mean().item())
    loss = nn.functional.cross_entropy((added / 2)[valid], labels[valid]).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert evaluate(task, batches, **settings)["loss"] != pytest.approx(loss, rel=1e-6)
