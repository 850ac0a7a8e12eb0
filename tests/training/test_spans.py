"""Runs whose groups span processes are those of one process."""

from pathlib import Path

import pytest

from tests import worlds

EXACT = ["length=20st", "precision=fp64", "evaluate.every=20st", "ema={decay: 0.9}", "clip=1", "track.pixels=true"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, groups of the whole batch and of half of it; the latter in two micro-batches."""
    folder = tmp_path_factory.mktemp("alone")
    for group in (64, 32):
        assert worlds.train(folder / f"g{group}", [*EXACT, f"batch.group={group}", f"batch.micro={group}"]).codes == [0]
    return folder


def same_numbers(run: Path, reference: Path, tolerance: float) -> None:
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
    ("group", "world", "more"),
    [(64, 2, []), (64, 4, []), (32, 4, []), (64, 2, ["parallel.remat=block"])],
)
def test_numbers_are_those_of_one_process(alone: Path, tmp_path: Path, group: int, world: int, more: list[str]) -> None:
    run = tmp_path / "spanning"
    ended = worlds.train(run, [*EXACT, f"batch.group={group}", *more], world)
    assert ended.codes == [0] * world, ended.text
    same_numbers(run, alone / f"g{group}", 1e-10)


def test_a_run_goes_on_with_its_groups_over_other_numbers_of_processes(alone: Path, tmp_path: Path) -> None:
    run, group = tmp_path / "cut", [*EXACT, "batch.group=64"]
    for world, step in ((4, 6), (1, 12)):
        ended = worlds.train(run, group, world, {0: [("at_step", {"step": step, "signal": "SIGTERM"})]})
        assert ended.codes == [75] * world, ended.text
    assert worlds.train(run, group, 2).codes == [0, 0]
    same_numbers(run, alone / "g64", 1e-10)
