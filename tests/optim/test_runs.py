"""Whole runs with the optimizers that count in other ways than SGD: killed and resumed, on one rank and on two."""

from pathlib import Path

import pytest

from tests import worlds

STEPS = 12
SETTINGS = ["length=12st", "evaluate.every=6st", "checkpoint.every=4st", "precision=fp32", "batch.micro=32"]
OPTIMIZERS = {
    "lamb": "optimizer={name: lamb, lr: 0.005, weight_decay: 0.02, no_decay: norm_and_bias, layer_decay: 0.9}",
    "adan": "optimizer={name: adan, lr: 0.002, weight_decay: 0.02, no_decay: norm_and_bias}",
    "nadam": "optimizer={name: nadam, lr: 0.002, weight_decay: 0.02}",
    "muon": "optimizer={name: muon, lr: 0.002, weight_decay: 0.02}",
}


@pytest.mark.parametrize(
    "name", [name if name == "lamb" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]
)
def test_killed_and_resumed_to_the_bit(tmp_path: Path, name: str) -> None:
    settings = [*SETTINGS, OPTIMIZERS[name]]
    assert worlds.train(tmp_path / "unbroken", settings).codes == [0]
    run = tmp_path / "run"
    assert worlds.train(run, settings, 1, {0: [("at_step", {"step": 7})]}).codes == [-9]
    ended = worlds.train(run, settings)
    assert ended.codes == [0], ended.text
    worlds.assert_bit_equal(run, tmp_path / "unbroken", STEPS)
    assert worlds.journal(run) == worlds.journal(tmp_path / "unbroken")


def test_lamb_on_two_ranks(tmp_path: Path) -> None:
    """The numbers of one rank up to rounding; killed on two ranks and resumed, the bits of two ranks."""
    settings = [*SETTINGS, "precision=fp64", OPTIMIZERS["lamb"]]
    for world in (1, 2):
        ended = worlds.train(tmp_path / f"world{world}", settings, world)
        assert ended.codes == [0] * world, ended.text
    one, two = worlds.tensors(tmp_path / "world1", STEPS), worlds.tensors(tmp_path / "world2", STEPS)
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        scale = tensor.abs().max().item() or 1.0
        assert (tensor - two[key]).abs().max().item() <= 1e-9 * scale, key
    run = tmp_path / "run"
    faults = {rank: [("at_step", {"step": 7})] for rank in (0, 1)}
    assert worlds.train(run, settings, 2, faults).codes == [-9, -9]
    ended = worlds.train(run, settings, 2)
    assert ended.codes == [0, 0], ended.text
    worlds.assert_bit_equal(run, tmp_path / "world2", STEPS)


def test_another_optimizers_checkpoint_is_refused(tmp_path: Path) -> None:
    assert worlds.train(tmp_path / "adamw", [*SETTINGS, "optimizer={name: adamw, lr: 0.001}"]).codes == [0]
    fork = ["--from", str(tmp_path / "adamw")]
    ended = worlds.train(tmp_path / "lamb", [*SETTINGS, "length=20st", OPTIMIZERS["lamb"]], options=fork)
    assert ended.codes == [2], ended.text
    assert "optimizer.name is lamb, and the checkpoint has no such state" in ended.text


def test_a_bad_step_under_lamb_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    """The loss of step 5 is NaN: weights, moments, counter, average and statistics are those of step 4."""
    settings = [*SETTINGS, "checkpoint.every=1st", "checkpoint.keep=20", "ema={decay: 0.9}", OPTIMIZERS["lamb"]]
    ended = worlds.train(tmp_path / "run", settings, 1, {0: [("nan_loss", {"step": 5})]})
    assert ended.codes == [0], ended.text
    before, after = worlds.tensors(tmp_path / "run", 4), worlds.tensors(tmp_path / "run", 5)
    different = [key for key in before if not (before[key] == after[key]).all()]
    assert not different
