"""What one optimizer step computes: against plain torch, under the guard, and under each option of a recipe."""

from pathlib import Path

import pytest
import torch

from restrain.parallel.precision import LossScale
from restrain.recipe import load
from restrain.training import network
from tests import worlds

SETTINGS = ["length=6st", "evaluate.every=6st", "checkpoint.every=1st", "checkpoint.keep=20", "precision=fp64"]


def run_of(folder: Path, *settings: str, faults=(), world: int = 1) -> Path:
    run = folder / "run"
    ended = worlds.train(run, [*SETTINGS, *settings], world, {0: list(faults)})
    assert ended.codes == [0] * world, ended.text
    return run


@pytest.mark.parametrize(
    "settings",
    [
        ["optimizer={name: sgd, lr: 0.1, momentum: 0.9}"],
        ["optimizer={name: adamw, lr: 0.01, weight_decay: 0.05}", "ema={decay: 0.5}", "clip=1.0"],
        ["precision=fp16"],
    ],
    ids=["sgd", "adamw", "fp16"],
)
@pytest.mark.parametrize("step", [1, 4])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, settings: list[str], step: int) -> None:
    """Weights, optimizer state, EMA and statistics after the step are those before it; the run goes on."""
    run = run_of(tmp_path, *settings, faults=[("nan_loss", {"step": step})])
    if step == 1:  # before it: the keyed initial weights, and optimizer, statistics and average as they begin
        after = worlds.tensors(run, 1)
        recipe = load(str(run / "recipe.lock.yaml")).recipe
        model = network.build_model_on(recipe, torch.device("cpu"), recipe.seed)
        initial = {f"{name}|param": p.detach() for name, p in model.named_parameters()}
        initial |= {f"{name}|buffer": b for name, b in model.named_buffers() if f"{name}|buffer" in after}
        assert all(torch.equal(after[name], t) for name, t in initial.items())
        averages = [name for name in after if name.endswith("|ema")]
        assert all(torch.equal(after[name], model.state_dict()[name[:-4]]) for name in averages)
        moments = [t for name, t in after.items() if name.rpartition("|")[2] in ("momentum_buffer", "exp_avg", "step")]
        assert moments
        assert not any(t.any() for t in moments)
    else:
        before, after = worlds.tensors(run, step - 1), worlds.tensors(run, step)
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        # fp16 halves its loss scale and counts anew: that is what such a step is for
        assert sorted(moved) == (["growth|scaler", "loss_scale|scaler"] if "precision=fp16" in settings else []), moved
    last = worlds.tensors(run, 6)
    assert all(torch.isfinite(t.float()).all() for t in last.values())
    lines = worlds.journal(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[step - 1]["train/loss"] == "NaN"
    assert all(isinstance(line["train/loss"], float) for line in lines if line["step"] != step)


def test_a_masked_first_step_is_followed_by_torchs_own_first_step(tmp_path: Path) -> None:
    """In torch's first step of SGD the momentum is the gradient, and the weights move by lr times it."""
    run = run_of(tmp_path, faults=[("nan_loss", {"step": 1})])
    first, second = worlds.tensors(run, 1), worlds.tensors(run, 2)
    lr = worlds.journal(run)[1]["train/lr"]
    for name, weight in first.items():
        if name.endswith("|param"):
            momentum = second[name.replace("|param", "|momentum_buffer")]
            assert torch.allclose(second[name], weight - lr * momentum, rtol=1e-12, atol=1e-15), name
    assert any(t.any() for name, t in second.items() if name.endswith("|momentum_buffer"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bad_step_of_one_rank_is_skipped_by_all(tmp_path: Path, rank: int) -> None:
    run = tmp_path / "run"
    ended = worlds.train(run, SETTINGS, 2, {rank: [("nan_loss", {"step": 3})]})
    assert ended.codes == [0, 0], ended.text
    before, after = worlds.tensors(run, 2), worlds.tensors(run, 3)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["fc.weight|param"], worlds.tensors(run, 4)["fc.weight|param"])


@pytest.mark.parametrize(
    "settings",
    [
        ["parallel.remat=block"],
        ["batch.micro=16", "parallel.remat=block"],
        pytest.param(["parallel.compile=block"], marks=pytest.mark.slow),
        pytest.param(["parallel.compile=block", "parallel.remat=block"], marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_layouts_compute_the_same(tmp_path: Path, mode: str, settings: list[str]) -> None:
    options = ["model.drop_path.rate=0.3", f"model.drop_path.mode={mode}"]
    plain = run_of(tmp_path / "plain", *options)
    other = run_of(tmp_path / "other", *options, *settings)
    a, b = worlds.tensors(plain, 6), worlds.tensors(other, 6)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        scale = tensor.abs().max().item() or 1.0
        assert (tensor - b[name]).abs().max().item() <= 1e-9 * scale, name


RESNET = ["model.name=cifar_resnet20"]
VIT = ["model.name=vit", "model.shape={depth: 3, width: 32, heads: 2, patch: 2}"]
MODELS = {
    "sample": RESNET,
    "batch": RESNET,
    "subset": VIT,
    "dropout": [*VIT, "model.transformer.dropout=0.2"],
}


@pytest.mark.parametrize("mode", MODELS)
@pytest.mark.parametrize("world", [2, 4])
def test_drop_path_mixing_clipping_and_ema_do_not_depend_on_the_world(tmp_path: Path, world: int, mode: str) -> None:
    dropped = f"model.drop_path={{rate: 0.5, mode: {mode.replace('dropout', 'sample')}}}"
    options = [*MODELS[mode], dropped, "mix={mixup: 0.2, cutmix: 1.0}", "clip=0.5", "ema={decay: 0.9}"]
    alone = run_of(tmp_path / "alone", *options, "batch.micro=32")
    many = run_of(tmp_path / "many", *options, world=world)
    a, b = worlds.tensors(alone, 6), worlds.tensors(many, 6)
    for name, tensor in a.items():
        scale = tensor.abs().max().item() or 1.0
        assert (tensor - b[name]).abs().max().item() <= 1e-9 * scale, name
    assert [line["train/grad_norm"] for line in worlds.journal(alone)] == pytest.approx(
        [line["train/grad_norm"] for line in worlds.journal(many)], rel=1e-9
    )
    left_out = [[line.get("train/dropped") for line in worlds.journal(run)] for run in (alone, many)]
    assert left_out[0] == left_out[1]
    assert all((share is not None) == (mode in ("batch", "subset")) for share in left_out[0])


def test_frozen_parts_do_not_move(tmp_path: Path) -> None:
    run = run_of(tmp_path, "model.freeze=[stem, block:0-3]", "optimizer.weight_decay=0.1")
    first, last = worlds.tensors(run, 1), worlds.tensors(run, 6)
    frozen = [n for n in first if n.startswith(("conv1.", "bn1.", "layer1.0.", "layer1.1.", "layer1.2.", "layer2.0."))]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(first[name], last[name]) for name in frozen)
    assert not torch.equal(first["fc.weight|param"], last["fc.weight|param"])


def test_the_loss_scale_halves_and_grows() -> None:
    scaler = LossScale(torch.device("cpu"), start=8.0)
    scaler.update(torch.tensor(1.0))
    assert scaler.scale.item() == 4.0
    for _ in range(2000):
        scaler.update(torch.tensor(0.0))
    assert scaler.scale.item() == 8.0
