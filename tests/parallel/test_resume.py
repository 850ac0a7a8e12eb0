"""A run goes on in any layout and world from what any other has saved."""

import importlib.util
import signal
from pathlib import Path

import pytest

from tests import worlds
from tests.parallel import parity
from tests.parallel.resume import ALONE, EARLY, HALF, LAST, Case, Matrix, Place, pairs, places, scalars

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


def needs_deepspeed(*found: Place) -> None:
    if not HAS_DEEPSPEED and any(place.layout.startswith("zero") for place in found):
        pytest.skip("needs deepspeed, which is not installed")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("resume"))


def test_places_and_pairs() -> None:
    assert {place.world for place in places()} == {1, 2, 4}
    assert len(set(pairs())) == 12
    assert all(a != b for a, b in pairs())


def test_a_sharded_run_and_the_one_process_that_it_is_compared_with(matrix: Matrix) -> None:
    """Saves what one process saves, and goes on from that with its interventions."""
    case, place = Case("gpt, adamw", "fp64"), Place("fsdp", 2)
    saves, loads = matrix.saves(case, place), matrix.loads(case, place)
    assert {"loss", "norm", "param", "exp_avg", "exp_avg_sq", "step", "ema"} <= saves.keys()
    assert not case.beyond(saves)
    assert not case.beyond(loads)


def test_tensor_groups_go_on_to_the_last_bit(matrix: Matrix) -> None:
    matrix.repeats(Case("vit, sgd", "fp64"), Place("tensor 2", 2))


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), pairs(), ids=str)
def test_pairs(matrix: Matrix, a: Place, b: Place) -> None:
    needs_deepspeed(a, b)
    case, found = matrix.pair(a, b)
    assert not case.beyond(found), found


@pytest.mark.slow
@pytest.mark.parametrize("place", [Place("ddp", 2), Place("fsdp", 4), Place("zero2", 2)], ids=str)
def test_goes_on_to_the_last_bit(matrix: Matrix, place: Place) -> None:
    needs_deepspeed(place)
    for case in place.cases:
        matrix.repeats(case, place)


# --------------------------------------------------------------------------------------------- killed while it is saved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subject", "now"),
    [("resnet, sgd", Place("hsdp, groups of 2", 4)), ("gpt, adamw", Place("tensor 2 x fsdp", 4))],
    ids=str,
)
def test_killed_while_a_checkpoint_is_written(matrix: Matrix, tmp_path: Path, subject: str, now: Place) -> None:
    """kill -9 of rank 1 of 2 between two of its files, while training goes on; then the same run on 4 ranks in another
    layout, from the checkpoint before."""
    case, started, run = Case(subject, "fp64"), Place("fsdp", 2), tmp_path / "run"
    alone = matrix.whole(case, ALONE)
    killed = matrix.bench.train(
        run, [*case.words, *started.words], 2, faults={1: [("while_saving", {"step": HALF, "later": 2})]}
    )
    assert killed.codes[1] == -signal.SIGKILL
    assert killed.codes[0] == 1, killed.text
    left = {path.name: sorted(file.name for file in path.iterdir()) for path in (run / "checkpoints").glob("step-*")}
    assert f"step-{HALF}" not in left
    assert "manifest.json" in left[f"step-{EARLY}"]
    assert worlds.ledger(run)[-1]["step"] >= HALF, "training did not go on while the checkpoint was written"

    ended = matrix.bench.train(run, [*case.words, *now.words], now.world)
    assert set(ended.codes) == {0}, ended.text
    assert f"going on after step {EARLY}" in ended.text
    found = parity.compared(alone, run)
    assert not case.beyond(found), found
    assert scalars(run, LAST) == scalars(alone, LAST)
