"""The guard and the loss scale of fp16 under every layout: a step that one rank spoils changes nothing on any rank."""

import importlib.util
import itertools
import math
from pathlib import Path

import pytest

from tests import worlds
from tests.parallel.parity import LAYOUTS, MODELS

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
GUARDED = [name for name in LAYOUTS if "groups" not in name]
# fused ones decide on the device; lion, lamb and muon ask on the host; the last two step on tensors that torch has cut
OPTIMIZERS = {
    "sgd": "sgd, lr: 0.01, momentum: 0.9",
    "adamw": "adamw, lr: 0.001",
    "lion": "lion, lr: 0.0001",
    "lamb": "lamb, lr: 0.001",
    "muon": "muon, lr: 0.001",
}
WORDS = [
    "length=4st",
    "evaluate.every=4st",
    "checkpoint.every=1st",
    "checkpoint.keep=9",
    "batch.global=48",
    "batch.group=4",
    "ema={decay: 0.5}",
    "clip=1.0",
    "parallel.threads=1",
    "parallel.accelerator=cpu",
]
BAD = 2  # the step that is spoilt
SCALER = {"loss_scale|scaler", "growth|scaler"}
FAST = {("fsdp", "lion"), ("hsdp 2x2", "sgd"), ("tensor 2", "adamw")}


def words_of(layout: str, optimizer: str, precision: str) -> list[str]:
    """A network with BatchNorm, whose statistics are guarded as well, where the layout has such."""
    model = MODELS["vit" if "tensor" in layout else "resnet"][1:]
    return [*model, *WORDS, f"precision={precision}", f"optimizer={{name: {OPTIMIZERS[optimizer]}}}"]


def train(path: Path, layout: str, words: list[str], spoilt: bool = True) -> Path:
    """The loss of the last rank alone is not a number in one step."""
    if layout.startswith("zero") and not HAS_DEEPSPEED:
        pytest.skip("needs deepspeed, which is not installed")
    ranks, placement = LAYOUTS[layout]
    faults = {ranks - 1: [("nan_loss", {"step": BAD})]} if spoilt else None
    ended = worlds.train(path, [*words, *placement], ranks, faults)
    assert set(ended.codes) == {0}, ended.text
    return path


def moved(run: Path, step: int) -> set[str]:
    """Tensors of a checkpoint that its step has changed."""
    before, after = worlds.tensors(run, step - 1), worlds.tensors(run, step)
    return {name for name in before if not before[name].equal(after[name])}


def cases() -> list:
    """ZeRO refuses the optimizers that take a whole matrix, and tensor parallelism too."""
    found = []
    for layout, optimizer in itertools.product(GUARDED, OPTIMIZERS):
        if optimizer not in ("lamb", "muon") or layout in ("ddp", "fsdp", "hsdp 2x2"):
            marks = [] if (layout, optimizer) in FAST else [pytest.mark.slow]
            found.append(pytest.param(layout, optimizer, marks=marks))
    return found


@pytest.mark.parametrize(("layout", "optimizer"), cases())
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, layout: str, optimizer: str) -> None:
    """Weights, statistics, optimizer and average; the run goes on."""
    run = train(tmp_path / "run", layout, words_of(layout, optimizer, "fp32"))
    assert worlds.journal(run)[BAD - 1]["train/grad_norm"] == "NaN"
    assert not moved(run, BAD)
    kinds = {name.rpartition("|")[2] for name in moved(run, BAD + 1)}
    assert {"param", "ema"} <= kinds
    assert len(kinds) > 2  # and the optimizer's own
    assert all(tensor.isfinite().all() for tensor in worlds.tensors(run, 4).values())


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[] if name in ("fsdp", "tensor 2") else [pytest.mark.slow]) for name in GUARDED]
)
def test_the_loss_scale_of_fp16(tmp_path: Path, layout: str) -> None:
    """It is halved by such a step, which changes nothing else, and norms are told and clipped without it."""
    words = words_of(layout, "sgd", "fp16")
    run = train(tmp_path / "run", layout, words)
    assert moved(run, BAD) == SCALER
    scales = [worlds.tensors(run, step)["loss_scale|scaler"].item() for step in (1, 2, 3)]
    assert scales[1:] == [scales[0] / 2] * 2
    assert "param" in {name.rpartition("|")[2] for name in moved(run, BAD + 1)}
    alone = tmp_path / "alone"
    assert worlds.train(alone, words).codes == [0]
    for metric in ("train/loss", "train/grad_norm"):
        here, there = (worlds.journal(path)[0][metric] for path in (run, alone))
        assert math.isclose(here, there, rel_tol=0.01), metric
