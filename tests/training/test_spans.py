"""Runs whose groups span processes are those of one process."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from restrain.errors import UserError
from restrain.recipe import load
from restrain.training import spans
from tests import worlds

STEPS = ["length=20st", "evaluate.every=20st", "ema={decay: 0.9}", "clip=1", "track.pixels=true", "track.probe=5st"]
HALVES, WHOLE = ["batch.group=32"], ["batch.group=64"]
SKIPPING = ["model.drop_path={rate: 0.5, mode: batch}"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run of one process with these settings, a group at a time: groups of 32 are two micro-batches."""

    @functools.cache
    def run(*settings: str) -> Path:
        folder = tmp_path_factory.mktemp("alone") / "run"
        ended = worlds.train(folder, [*STEPS, *settings])
        assert ended.codes == [0], ended.text
        return folder

    return run


def same_numbers(run: Path, reference: Path, tolerance: float = 1e-10) -> None:
    assert worlds.ledger(run) == worlds.ledger(reference)  # which samples where, and their pixels
    mine, theirs = worlds.journal(run), worlds.journal(reference)
    assert [line["step"] for line in mine] == list(range(1, 21))
    for a, b in zip(mine, theirs, strict=True):
        assert a["train/lr"] == b["train/lr"]
        for name in ("train/loss", "train/grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=tolerance), (a["step"], name)
    for name in ("eval/loss", "eval/top1", "eval/count"):
        assert mine[-1][name] == pytest.approx(theirs[-1][name], rel=tolerance)
    mine, theirs = worlds.tensors(run, 20), worlds.tensors(reference, 20)
    assert mine.keys() == theirs.keys()
    assert {name.split("|")[1] for name in mine} >= {"param", "buffer", "ema"}
    for name, tensor in mine.items():
        scale = theirs[name].abs().max().item() or 1.0
        assert (tensor - theirs[name]).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize(
    ("world", "settings", "more"),
    [
        (2, WHOLE, []),
        pytest.param(4, WHOLE, [], marks=pytest.mark.slow),
        pytest.param(4, HALVES, [], marks=pytest.mark.slow),
        pytest.param(4, WHOLE, ["parallel.remat=block"], marks=pytest.mark.slow),
        pytest.param(4, [*HALVES, *SKIPPING], [], marks=pytest.mark.slow),
    ],
)
def test_numbers_are_those_of_one_process(
    alone: Callable[..., Path], tmp_path: Path, world: int, settings: list[str], more: list[str]
) -> None:
    run, settings = tmp_path / "spanning", ["precision=fp64", *settings]
    micro = "batch.micro=32" if "batch.group=32" in settings else "batch.micro=64"
    ended = worlds.train(run, [*STEPS, *settings, *more], world)
    assert ended.codes == [0] * world, ended.text
    assert f", each over {world // (2 if micro == 'batch.micro=32' else 1)} processes)" in ended.text
    same_numbers(run, alone(micro, *settings))


@pytest.mark.slow
def test_in_bf16_numbers_are_near(alone: Callable[..., Path], tmp_path: Path) -> None:
    run, settings = tmp_path / "spanning", ["precision=bf16", *WHOLE]
    ended = worlds.train(run, [*STEPS, *settings], 2)
    assert ended.codes == [0, 0], ended.text
    for a, b in zip(worlds.journal(run)[:5], worlds.journal(alone(*settings))[:5], strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=0.02)


@pytest.mark.slow
def test_a_run_goes_on_with_its_groups_over_other_numbers_of_processes(
    alone: Callable[..., Path], tmp_path: Path
) -> None:
    run, settings = tmp_path / "cut", ["precision=fp64", *WHOLE]
    for world, step in ((4, 6), (1, 12)):
        ended = worlds.train(run, [*STEPS, *settings], world, {0: [("at_step", {"step": step, "signal": "SIGTERM"})]})
        assert ended.codes == [75] * world, ended.text
    assert worlds.train(run, [*STEPS, *settings], 2).codes == [0, 0]
    same_numbers(run, alone("batch.micro=64", *settings))


def test_recipes_whose_groups_must_stay_whole_are_told_so() -> None:
    plain, mixing = load("digits_resnet20").recipe, load("digits_resnet20", ["mix.cutmix=1"]).recipe
    subset = load("digits_resnet20", ["model.drop_path={rate: 0.5, mode: subset}"]).recipe
    assert spans.lines(plain) == ["and with groups that span processes: 8, 16, 32, 64"]
    spans.check(plain, 64)
    for recipe, reason in ((mixing, "mixup and cutmix"), (subset, "mode=subset")):
        spans.check(recipe, 4)
        with pytest.raises(UserError, match=rf"spanning 2 of them.*{reason}.*that work: 1, 2, 4\.$"):
            spans.check(recipe, 8)
        assert len(spans.lines(recipe)) == 1
        assert reason in spans.lines(recipe)[0]
    single = load("digits_resnet20", ["batch.group=1", "batch.micro=auto"]).recipe
    assert spans.lines(single) == []
