"""Every bad input, end to end through the command line: the text, the exit code, no traceback, and nothing lost."""

import os
from pathlib import Path

import pytest

from tests import worlds
from tests.bad_input.harness import RUN, Place, tree
from tests.bad_input.page import CASES, PAGE, page

GPU = any(Path("/dev").glob("nvidia[0-9]*"))


@pytest.mark.parametrize("what", CASES)
def test_said(place: Place, what: str) -> None:
    if GPU and what == "A GPU is asked for where there is none":
        pytest.skip("there is one here")
    case = CASES[what]
    outcome = case.do(place)
    assert set(outcome.codes) == {case.code}, outcome.said
    if case.code:
        assert outcome.errors == [case.said]  # once, whatever the number of processes
    else:
        assert case.said in outcome.said.splitlines()
        assert outcome.errors == []
    assert "Traceback" not in outcome.said
    assert "fault of restrain" not in outcome.said
    assert not (place.folder / "evil").exists()
    if place.kept is not None:
        folder, before = place.kept
        assert tree(folder) == before


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "write it again: python -m tests.bad_input.page"


def test_a_full_disk_costs_no_checkpoint_and_no_step(place: Place, unbroken: Path) -> None:
    run = place.stopped()
    for step in (7, 8):
        before = tree(run / "checkpoints")
        outcome = place.cli("resume", "{dir}/run", "checkpoint.every=1st", faults={0: [("disk_full", {"step": step})]})
        assert outcome.codes == [1]
        saved = {name: content for name, content in tree(run / "checkpoints").items() if name in before}
        assert saved == before or step == 8  # at step 8 that of step 7 had been written
        assert not list((run / "checkpoints").glob("*.tmp-*"))
    assert place.cli("resume", "{dir}/run").codes == [0]
    worlds.assert_bit_equal(run, unbroken, 8)
    assert worlds.ledger(run) == worlds.ledger(unbroken)


@pytest.mark.parametrize("name", ["model-0000.safetensors", "optim-0000.safetensors", "manifest.json"])
def test_what_is_damaged_is_trained_again_to_the_bit(place: Place, unbroken: Path, name: str) -> None:
    run = place.stopped()
    path = run / "checkpoints" / "step-6" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    outcome = place.cli("resume", "{dir}/run", faults={0: [("no_pickles", {})]})
    assert outcome.codes == [0]
    assert f"passed over: run/checkpoints/step-6/{name} is damaged" in outcome.said
    worlds.assert_bit_equal(run, unbroken, 8)
    assert worlds.ledger(run) == worlds.ledger(unbroken)
    assert worlds.journal(run) == worlds.journal(unbroken)


def test_a_run_folder_may_be_moved(place: Place, unbroken: Path) -> None:
    moved = place.folder / "déjà vu; $HOME"
    place.stopped().rename(moved)
    assert place.cli("resume", str(moved)).codes == [0]
    worlds.assert_bit_equal(moved, unbroken, 8)


def test_an_allowed_change_is_no_edit(place: Place) -> None:
    """The lock is written again and sealed again."""
    run = place.stopped()
    assert place.cli("resume", "{dir}/run", "optimizer.lr=0.2", "--allow", "optimizer").codes == [0]
    assert "lr: 0.2" in (run / "recipe.lock.yaml").read_text()
    outcome = place.cli("resume", "{dir}/run")
    assert outcome.codes == [0]
    assert "is finished" in outcome.said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_folder_that_cannot_be_written(place: Place) -> None:
    run = place.stopped()
    run.chmod(0o555)
    outcome = place.cli("resume", "{dir}/run")
    run.chmod(0o755)
    assert outcome.codes == [1]
    (error,) = outcome.errors
    assert error.startswith("Cannot ")
    assert "You have no permission there" in error


def test_debug_shows_the_traceback(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTRAIN_DEBUG", "1")
    outcome = place.show("digits_resnet20", *RUN, "batch.group=48")
    assert outcome.codes == [2]
    assert "Traceback" in outcome.said
    assert outcome.errors == ["command line: batch.group = 48 does not divide batch.global = 64; 8, 16, 32, 64 do."]
