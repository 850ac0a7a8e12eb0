"""Kills on events: whatever dies when, the same command goes on, and ends with the bits of the unbroken run."""

from pathlib import Path

import pytest

from tests import worlds
from tests.worlds import Fault

STEPS = 44
SETTINGS = [
    "length=2ep",
    "evaluate.every=11st",
    "checkpoint.every=6st",
    "batch.micro=32",
    "ema={decay: 0.9, every: 2st}",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The unbroken run on one rank and on two."""
    folder = tmp_path_factory.mktemp("unbroken")
    runs = {world: folder / f"world{world}" for world in (1, 2)}
    for world, run in runs.items():
        ended = worlds.train(run, SETTINGS, world)
        assert ended.codes == [0] * world, ended.text
    return runs


def assert_same_run(run: Path, reference: Path) -> None:
    worlds.assert_bit_equal(run, reference, STEPS)
    assert [line["step"] for line in worlds.ledger(run)] == list(range(1, STEPS + 1))  # each sample once
    assert worlds.ledger(run) == worlds.ledger(reference)
    assert worlds.journal(run) == worlds.journal(reference)


KILLS: dict[str, list[Fault]] = {
    "in the first step": [("at_step", {"step": 1})],
    "at an accumulation border": [("at_accumulation", {"step": 15})],
    "during an evaluation": [("in_evaluation", {"number": 8})],
    "writing a checkpoint, before the rename": [("before_rename", {"step": 24})],
    "between the rename and LATEST": [("before_latest", {"step": 24})],
    "writing a checkpoint of a new best": [("before_rename", {"step": 11})],
    "in the last step": [("at_step", {"step": STEPS})],
    "in the last evaluation": [("in_evaluation", {"number": 24})],
    "writing the last checkpoint": [("before_rename", {"step": STEPS})],
}


@pytest.mark.parametrize("name", KILLS)
def test_killed_once(unbroken: dict[int, Path], tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    ended = worlds.train(run, SETTINGS, 1, {0: KILLS[name]})
    assert ended.codes == [-9], ended.text
    ended = worlds.train(run, SETTINGS)
    assert ended.codes == [0], ended.text
    assert_same_run(run, unbroken[1])


def test_killed_twice_before_any_checkpoint(unbroken: dict[int, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (3, 5):
        assert worlds.train(run, SETTINGS, 1, {0: [("at_step", {"step": step})]}).codes == [-9]
        assert not list((run / "checkpoints").glob("step-*[0-9]"))
    assert worlds.train(run, SETTINGS).codes == [0]
    assert_same_run(run, unbroken[1])
    assert sorted(path.name for path in (run / "attempts").iterdir()) == ["1", "2", "3"]


def test_killed_again_and_again(unbroken: dict[int, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (9, 14, 20, 23, 33, 40):
        assert worlds.train(run, SETTINGS, 1, {0: [("at_step", {"step": step})]}).codes == [-9]
    assert worlds.train(run, SETTINGS).codes == [0]
    assert_same_run(run, unbroken[1])


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_of_two_is_killed(unbroken: dict[int, Path], tmp_path: Path, rank: int) -> None:
    run = tmp_path / "run"
    ended = worlds.train(run, SETTINGS, 2, {rank: [("at_step", {"step": 20})]})
    assert ended.codes[rank] == -9
    assert ended.codes[1 - rank] == 1
    assert "lost the connection to another rank" in ended.said[1 - rank]
    ended = worlds.train(run, SETTINGS, 2)
    assert ended.codes == [0, 0], ended.text
    assert_same_run(run, unbroken[2])


@pytest.mark.parametrize("name", ["TERM", "USR1"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_of_two(unbroken: dict[int, Path], tmp_path: Path, name: str, rank: int) -> None:
    run = tmp_path / "run"
    ended = worlds.train(run, SETTINGS, 2, {rank: [("at_step", {"step": 21, "signal": f"SIG{name}"})]})
    assert ended.codes == [75, 75], ended.text
    left = len(worlds.ledger(run))
    assert 21 <= left <= 22  # both leave within two steps
    assert (run / "checkpoints" / "LATEST").read_text().strip() == f"step-{left}"
    assert worlds.train(run, SETTINGS, 2).codes == [0, 0]
    assert_same_run(run, unbroken[2])


@pytest.mark.parametrize("world", [1, 2])
def test_a_signal_during_an_evaluation(unbroken: dict[int, Path], tmp_path: Path, world: int) -> None:
    """The evaluation is given up, and repeated after the resume; its line stands once."""
    run = tmp_path / "run"
    batches = 6 // world  # of 64 rows, an evaluation: the second evaluation is interrupted
    fault = {world - 1: [("in_evaluation", {"number": batches + 2, "signal": "SIGTERM"})]}
    ended = worlds.train(run, SETTINGS, world, fault)
    assert ended.codes == [75] * world, ended.text
    assert (run / "checkpoints" / "LATEST").read_text().strip() == "step-22"
    # interrupted again in the repeated evaluation: nothing is trained, nothing changes
    ended = worlds.train(run, SETTINGS, world, {0: [("in_evaluation", {"number": 2, "signal": "SIGUSR1"})]})
    assert ended.codes == [75] * world, ended.text
    assert (run / "checkpoints" / "LATEST").read_text().strip() == "step-22"
    # killed right after the repeated evaluation
    ended = worlds.train(run, SETTINGS, world, {0: [("at_step", {"step": 23})]})
    assert ended.codes[0] == -9
    assert worlds.train(run, SETTINGS, world).codes == [0] * world
    assert_same_run(run, unbroken[world])


def test_a_signal_in_the_last_evaluation(unbroken: dict[int, Path], tmp_path: Path) -> None:
    """Nothing is left to train, only the evaluation to be repeated."""
    run = tmp_path / "run"
    ended = worlds.train(run, SETTINGS, 1, {0: [("in_evaluation", {"number": 20, "signal": "SIGTERM"})]})
    assert ended.codes == [75], ended.text
    assert worlds.train(run, SETTINGS).codes == [0]
    assert_same_run(run, unbroken[1])


def test_ctrl_c_saves_and_leaves_with_130(unbroken: dict[int, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = worlds.train(run, SETTINGS, 1, {0: [("at_step", {"step": 8, "signal": "SIGINT"})]})
    assert ended.codes == [130], ended.text
    assert "go on with: restrain resume" in ended.text
    assert worlds.train(run, SETTINGS).codes == [0]
    assert_same_run(run, unbroken[1])


def test_a_finished_run_says_so(unbroken: dict[int, Path]) -> None:
    before = (unbroken[1] / "run.json").read_text()
    ended = worlds.train(unbroken[1], SETTINGS)
    assert ended.codes == [0]
    assert "is finished" in ended.text
    assert "eval/top1" in ended.text
    assert (unbroken[1] / "run.json").read_text() == before


def test_four_ranks_resume_to_the_bit(tmp_path: Path) -> None:
    """DDP orders its buckets anew after its first backward pass: without the rehearsal, 3 ranks and more differ."""
    settings = [*SETTINGS[1:3], "length=16st", "precision=fp32", "batch.micro=16"]
    assert worlds.train(tmp_path / "unbroken", settings, 4).codes == [0] * 4
    run = tmp_path / "run"
    faults = {rank: [("at_step", {"step": 9})] for rank in range(4)}
    assert worlds.train(run, settings, 4, faults).codes == [-9] * 4
    ended = worlds.train(run, settings, 4)
    assert ended.codes == [0] * 4, ended.text
    worlds.assert_bit_equal(run, tmp_path / "unbroken", 16)
