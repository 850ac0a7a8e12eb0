"""Each fault that would make a run something else than it says is planted here, and a check that passes without it
fails with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from restrain.data.expected import expected
from restrain.recipe import load
from restrain.run import ledger
from restrain.training import build, network
from tests import worlds
from tests.worlds import Fault

SETTINGS = ["length=12st", "evaluate.every=12st", "track.pixels=true", "checkpoint.every=4st", "precision=fp64"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sound") / "run"
    assert worlds.train(run, SETTINGS).codes == [0]
    return run


# ------------------------------------------------------------------------------------------------------------ checks


def audit(run: Path) -> None:
    """The ledger is what order, plan and index alone say."""
    recipe = load(str(run / "recipe.lock.yaml")).recipe
    data = build.open_data(recipe)
    plan = build.build_plan(recipe, data, [])
    order = build.build_order(recipe, data)
    hashes = expected(order, plan, data.train.crcs)
    problems = ledger.audit(worlds.ledger(run), lambda step: hashes(step - 1), range(1, 13))
    assert not problems, "; ".join(map(str, problems[:3]))


def same_pixels(run: Path, sound: Path) -> None:
    """The augmented pixels of each step, as trained, are those of the sound run."""
    assert [line["pixels"] for line in worlds.ledger(run)] == [line["pixels"] for line in worlds.ledger(sound)]


def same_bits(run: Path, sound: Path) -> None:
    worlds.assert_bit_equal(run, sound, 12)


def plain_loop(run: Path) -> None:
    """Weights, momentum and running statistics are those of a bare PyTorch loop over the same batches."""
    recipe = load(str(run / "recipe.lock.yaml")).recipe
    data = build.open_data(recipe)
    plan = build.build_plan(recipe, data, [])
    device = torch.device("cpu")
    model = network.build_model_on(recipe, device, recipe.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    factor = build.build_factor(recipe, plan, 12)
    where = build.Placement("cpu", 64, 1, 1)
    loader = build.build_train_loader(recipe, data, plan, build.World(), where, 0, 12)
    mean, std = recipe.data.mean[0], recipe.data.std[0]
    for step, batch in enumerate(loader):
        (micro,) = batch.micros
        images = (micro.images.double() / 255 - mean) / std
        loss = F.cross_entropy(model(images), micro.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * factor(step)
        optimizer.step()
    found = worlds.tensors(run, 12)
    wanted = {f"{name}|buffer": t for name, t in model.named_buffers() if "running" in name or "num_batches" in name}
    wanted |= {f"{name}|param": t.detach() for name, t in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    wanted |= {f"{names[id(p)]}|momentum_buffer": s["momentum_buffer"] for p, s in optimizer.state.items()}
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-9, atol=1e-11), name


# ------------------------------------------------------------------------------------------ a sound run passes them all


def test_a_sound_run_passes(sound: Path, tmp_path: Path) -> None:
    audit(sound)
    again = tmp_path / "again"
    assert worlds.train(again, SETTINGS, 2).codes == [0, 0]
    audit(again)
    same_pixels(again, sound)


def test_a_resumed_run_passes(sound: Path, tmp_path: Path) -> None:
    run = resumed(tmp_path / "run", [])
    audit(run)
    same_bits(run, sound)


def test_a_step_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    plain_loop(whole_batch(tmp_path / "run", []))


def resumed(run: Path, faults: list[Fault]) -> Path:
    """Killed in step 7, so resumed after step 4; the faults are planted in the second attempt."""
    assert worlds.train(run, SETTINGS, 1, {0: [("at_step", {"step": 7})]}).codes == [-9]
    ended = worlds.train(run, SETTINGS, 1, {0: faults})
    assert ended.codes == [0], ended.text
    return run


def whole_batch(run: Path, faults: list[Fault]) -> Path:
    """One group a batch, where grouped BatchNorm is BatchNorm."""
    ended = worlds.train(run, [*SETTINGS, "batch.group=64"], 1, {0: faults})
    assert ended.codes == [0], ended.text
    return run


# ----------------------------------------------------------------------------------------------- each planted in turn


@pytest.mark.parametrize(
    ("fault", "world"),
    [("swap_rows", 2), ("drop_row", 1), ("repeat_row", 1), ("wrong_picture", 1)],
)
def test_a_wrong_loader_is_seen_by_the_audit(tmp_path: Path, fault: str, world: int) -> None:
    run = tmp_path / "run"
    ended = worlds.train(run, SETTINGS, world, {rank: [(fault, {})] for rank in range(world)})
    assert ended.codes == [0] * world, ended.text
    with pytest.raises(AssertionError, match="was trained on other rows"):
        audit(run)


@pytest.mark.parametrize("fault", ["wrong_slot", "global_generator"])
def test_wrong_pixels_are_seen_by_the_pixel_hash(sound: Path, tmp_path: Path, fault: str) -> None:
    run = tmp_path / "run"
    assert worlds.train(run, SETTINGS, 1, {0: [(fault, {})]}).codes == [0]
    audit(run)  # the right samples were read
    with pytest.raises(AssertionError):
        same_pixels(run, sound)


@pytest.mark.parametrize("fault", ["optimizer_not_restored", "late_learning_rate"])
def test_a_wrong_resume_is_seen_by_bit_equality(sound: Path, tmp_path: Path, fault: str) -> None:
    run = resumed(tmp_path / "run", [(fault, {})])
    with pytest.raises(AssertionError, match="tensors differ"):
        same_bits(run, sound)


def test_a_late_learning_rate_is_seen_in_the_journal(sound: Path, tmp_path: Path) -> None:
    run = resumed(tmp_path / "run", [("late_learning_rate", {})])
    rates: Callable[[Path], list[float]] = lambda path: [line["train/lr"] for line in worlds.journal(path)]  # noqa: E731
    assert rates(run) != rates(sound)


def test_statistics_updated_twice_are_seen_by_the_plain_loop(tmp_path: Path) -> None:
    run = whole_batch(tmp_path / "run", [("batchnorm_twice", {})])
    with pytest.raises(AssertionError, match=r"running_mean|num_batches"):
        plain_loop(run)


def test_a_flipped_bit_of_a_checkpoint_is_seen_when_it_is_read(sound: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert worlds.train(run, SETTINGS, 1, {0: [("at_step", {"step": 11})]}).codes == [-9]
    path = run / "checkpoints" / "step-8" / "optim-0000.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    ended = worlds.train(run, SETTINGS)
    assert ended.codes == [0]
    assert "optim-0000.safetensors" in ended.text  # said aloud
    assert "going on after step 4" in ended.text
    same_bits(run, sound)
    audit(run)


RESNET = ["model.name=cifar_resnet20", "model.join={name: dropout, rate: 0.2}"]
VIT = ["model.name=vit", "model.shape={depth: 3, width: 32, heads: 2, patch: 2}"]
DRAWING = {
    "resnet-sample": ["model.name=cifar_resnet20"],
    "resnet-batch": [*RESNET, "model.drop_path.mode=batch"],
    "vit-batch": [*VIT, "model.transformer.dropout=0.1", "model.drop_path.mode=batch"],
    "vit-subset": [*VIT, "model.drop_path.mode=subset"],
}


@pytest.mark.parametrize("which", DRAWING)
def test_no_global_generator_is_read(tmp_path: Path, which: str) -> None:
    """The drawing functions of random, numpy.random and torch raise in a run of 20 steps with drop path, dropout and
    mixup, in a resume and in an evaluation."""
    settings = [*SETTINGS, *DRAWING[which], "model.drop_path.rate=0.5", "mix.mixup=0.2", "mix.cutmix=1.0"]
    settings += ["length=20st", "evaluate.every=20st"]
    run = tmp_path / "run"
    assert worlds.train(run, settings, 1, {0: [("no_draws", {}), ("at_step", {"step": 7})]}).codes == [-9]
    ended = worlds.train(run, settings, 1, {0: [("no_draws", {})]})
    assert ended.codes == [0], ended.text
    assert np.isfinite([line["train/loss"] for line in worlds.journal(run)]).all()
    assert len(worlds.journal(run)) == 20
