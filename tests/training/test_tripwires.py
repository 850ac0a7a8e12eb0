"""Tripwires: looked at once, on all ranks alike; a run that is stopped leaves in good order and goes on past them."""

import json
import math
from pathlib import Path

import pytest

from restrain.recipe.durations import Duration
from restrain.recipe.schema_run import Expect, Tripwire
from restrain.training.tripwires import EXIT_TRIPPED, Tripwires
from tests import worlds


def wires(*written: dict, looked_at: list[str] | None = None) -> Tripwires:
    at = tuple(Tripwire(**{"at": Duration(5, "st"), "metric": "train/loss", **one}) for one in written)
    expect = Expect(value=1.0, tolerance=0.1, source="nobody", status="unverified", at=at)
    return Tripwires(expect, lambda duration: int(duration.value), [] if looked_at is None else looked_at)


@pytest.mark.parametrize(
    ("value", "breaks"), [(1.0, False), (2.0, False), (2.1, True), (0.9, True), (math.nan, True), (math.inf, True)]
)
def test_bounds(value: float, breaks: bool) -> None:
    assert bool(wires({"min": 1.0, "max": 2.0}).look(5, {"train/loss": value})) == breaks


def test_the_first_value_from_the_moment_on_counts_and_no_other() -> None:
    looked_at: list[str] = []
    found = wires({"max": 2.0}, looked_at=looked_at)
    assert found.look(4, {"train/loss": 9.0}) == []
    assert found.look(6, {"eval/loss": 9.0}) == []
    assert found.look(7, {"train/loss": 1.0}) == []
    assert found.look(8, {"train/loss": 9.0}) == []
    assert looked_at == ["train/loss@5st:None:2.0"]
    assert wires({"max": 2.0}, looked_at=looked_at).look(9, {"train/loss": 9.0}) == []
    assert wires({"max": 3.0}, looked_at=looked_at).look(9, {"train/loss": 9.0}) != []


STOP = "expect.at=[{at: 4st, metric: eval/top1, min: 99}, {at: 2st, metric: train/loss, max: 0.1, act: warn}]"
RUN = ["length=8st", "evaluate.every=2st", "precision=fp64", STOP]


@pytest.mark.parametrize("world", [1, 2])
def test_a_hopeless_run_saves_leaves_and_goes_on(tmp_path: Path, world: int) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    ended = worlds.train(run, RUN, world)
    assert ended.codes == [EXIT_TRIPPED] * world, ended.text
    assert "tripwire: eval/top1 is " in ended.said[0]
    assert "a sound run has at least 99 from 4st on" in ended.said[0]
    info = json.loads((run / "run.json").read_text())
    assert (info["state"], info["step"]) == ("interrupted", 4)
    assert [(one["step"], one["act"]) for one in info["tripwires"]] == [(2, "warn"), (4, "stop")]
    assert (run / "checkpoints" / "step-4").is_dir()

    assert worlds.train(run, RUN, world).codes == [0] * world
    assert worlds.train(whole, [*RUN[:-1]], world).codes == [0] * world
    assert worlds.journal(run) == worlds.journal(whole)


def test_a_training_loss_stops_a_run_between_evaluations(tmp_path: Path) -> None:
    wire = "expect.at=[{at: 3st, metric: train/loss, max: 0.5}]"
    ended = worlds.train(tmp_path / "run", ["length=8st", "evaluate.every=8st", wire])
    assert ended.codes == [EXIT_TRIPPED], ended.text
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["tripwires"][0]["step"] == 3
    assert info["step"] in (3, 4)  # it is read one step late
