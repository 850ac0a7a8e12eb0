"""Where the time of data threads goes, and what is said when training waits for them."""

import time

import pytest

from restrain.data import sets
from restrain.data.laps import STAGES, Laps
from restrain.training.waiting import AGAIN, CURES, Waiting
from tests.data.making import section, train_loader, write_shards


def test_each_lap_goes_to_its_stage():
    laps = Laps(every=1)
    watch = laps.begin()
    assert watch is not None
    for stage in STAGES:
        if stage == "decode":
            time.sleep(0.02)
        watch.lap(stage)
    sums = laps.sums()
    assert sums.rows == 1
    assert sums.wall["decode"] >= 0.02 > sums.cpu["decode"]
    assert max(sums.shares(), key=lambda stage: sums.shares()[stage]) == "decode"
    assert sum(sums.shares().values()) == pytest.approx(1.0)
    assert sums.since(sums).shares() == {}
    assert [Laps(every=4).begin() for _ in range(3)] == [None] * 3


def test_a_loader_times_its_rows(tmp_path):
    source = sets.open_source(section("webdataset", write_shards(tmp_path / "set", 2, 9)), "train")
    loader = train_loader(source, laps=Laps(every=1))
    rows = sum(len(micro.labels) for batch in loader for micro in batch.micros)
    sums = loader.laps.sums()
    assert sums.rows == rows > 0
    assert all(sums.wall[stage] > 0 for stage in STAGES)


def waited(share: float, seconds: int, stage: str = "read") -> list[tuple[int, str]]:
    """(second, notice) of a run whose steps take a second and whose data threads work at one stage."""
    laps = Laps()
    laps.add("decode", 500.0, 500.0, True)  # before the training, as of an evaluation: not to be counted
    waiting, said = Waiting(laps, 3), []
    for second in range(seconds):
        laps.add(stage, 1.0, 0.1, True)
        if (told := waiting.step(1.0, share)) is not None:
            said.append((second, told))
    return said


@pytest.mark.parametrize("stage", STAGES)
def test_waiting_is_said_with_its_cause(stage):
    [(second, told)] = waited(0.2, 100, stage)
    assert second == 29
    assert "data wait: 20 % of the last 30 steps" in told
    assert "3 data thread(s)" in told
    assert CURES[stage] in told


def test_waiting_is_said_seldom_and_only_when_it_is_much():
    assert waited(0.04, 100) == []
    first, second = (at for at, _ in waited(0.5, 2 * int(AGAIN)))
    assert second - first >= AGAIN
    untold = Waiting(Laps(), 1)  # no row was timed: nothing is known of the cause
    assert not any(untold.step(1.0, 0.5) for _ in range(100))
