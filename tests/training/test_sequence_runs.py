"""Recurrent networks on made-up sequences as runs: the same on any world, after a kill, and audited."""

from pathlib import Path

import pytest

from restrain.data.expected import expected
from restrain.recipe import load
from restrain.run import ledger
from restrain.training import build
from tests import worlds

STEPS = 8
SHORT = ["length=8st", "evaluate.every=8st", "checkpoint.every=4st", "precision=fp64", "track.pixels=true"]
SHORT += ["batch.global=8", "batch.group=2", "data.train=24", "data.eval=5", "model.shape.width=6", "expect=null"]
RUNS = {
    "adding": ("adding_lstm", [*SHORT, "data.length=20"]),
    "copy": ("copy_lstm", [*SHORT, "data.length=21"]),
}


def train(task: str, run: Path, more: list[str], world: int = 1, faults=None) -> worlds.Ended:
    recipe, words = RUNS[task]
    return worlds.train(run, [*words, *more], world, faults, recipe=recipe)


@pytest.fixture(scope="module", params=list(RUNS))
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    run = tmp_path_factory.mktemp(request.param) / "run"
    ended = train(request.param, run, [])
    assert ended.codes == [0], ended.text
    return request.param, run


def test_two_ranks_give_the_same(sound: tuple[str, Path], tmp_path: Path) -> None:
    task, reference = sound
    ended = train(task, tmp_path / "run", ["batch.micro=2"], world=2)
    assert ended.codes == [0, 0], ended.text
    assert worlds.ledger(tmp_path / "run") == worlds.ledger(reference)
    for mine, theirs in zip(worlds.journal(tmp_path / "run"), worlds.journal(reference), strict=True):
        for name in theirs:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-10), name
    assert {"eval/loss", "eval/top1", "eval/count"} <= set(worlds.journal(reference)[-1])
    assert worlds.journal(reference)[-1]["eval/count"] == (5 if task == "adding" else 5 * 10)  # symbols said again


def test_killed_and_gone_on(sound: tuple[str, Path], tmp_path: Path) -> None:
    task, reference = sound
    run = tmp_path / "run"
    assert train(task, run, [], 1, {0: [("at_step", {"step": 7})]}).codes == [-9]
    ended = train(task, run, [])
    assert ended.codes == [0], ended.text
    worlds.assert_bit_equal(run, reference, STEPS)
    assert worlds.journal(run) == worlds.journal(reference)


def test_the_ledger_is_what_order_and_generator_say(sound: tuple[str, Path]) -> None:
    _, run = sound
    recipe = load(str(run / "recipe.lock.yaml")).recipe
    data = build.open_data(recipe)
    hashes = expected(build.build_order(recipe, data), build.build_plan(recipe, data, []), data.train.crcs)
    assert not ledger.audit(worlds.ledger(run), lambda step: hashes(step - 1), range(1, STEPS + 1))
    other = build.open_data(recipe.model_copy(update={"data": recipe.data.model_copy(update={"seed": 1})}))
    hashes = expected(build.build_order(recipe, other), build.build_plan(recipe, other, []), other.train.crcs)
    assert ledger.audit(worlds.ledger(run), lambda step: hashes(step - 1), range(1, STEPS + 1))


def test_another_set_is_another_run(sound: tuple[str, Path]) -> None:
    task, run = sound
    ended = train(task, run, ["data.seed=1"])
    assert ended.codes != [0]
    assert "data.seed" in ended.text
