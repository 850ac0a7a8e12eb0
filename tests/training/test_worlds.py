"""The same run on any number of processes and any micro-batch."""

from pathlib import Path

import pytest

from tests import worlds

THREE_EPOCHS = ["length=3ep", "precision=fp64", "track.pixels=true", "checkpoint.every=66st"]
TWENTY_STEPS = ["length=20st", "precision=fp64", "evaluate.every=20st", "ema={decay: 0.9}"]

LAYOUTS = [(1, 16), (1, 32), (2, 16), (2, 32), (4, 16)]  # processes, micro-batch: accumulation 4, 2, 2, 1, 1


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    assert worlds.train(folder / "three", THREE_EPOCHS).codes == [0]
    assert worlds.train(folder / "twenty", TWENTY_STEPS).codes == [0]
    return folder


@pytest.mark.parametrize(("world", "micro"), LAYOUTS)
def test_samples_draws_and_rates_are_equal_and_numbers_nearly(
    reference: Path, tmp_path: Path, world: int, micro: int
) -> None:
    run = tmp_path / "three"
    ended = worlds.train(run, [*THREE_EPOCHS, f"batch.micro={micro}"], world)
    assert ended.codes == [0] * world, ended.text
    # hash: which samples at which position; pixels: what the augmentation made of them
    assert worlds.ledger(run) == worlds.ledger(reference / "three")
    assert len(worlds.ledger(run)) == 66
    mine, theirs = worlds.journal(run), worlds.journal(reference / "three")
    assert [line["train/lr"] for line in mine] == [line["train/lr"] for line in theirs]

    run = tmp_path / "twenty"
    assert worlds.train(run, [*TWENTY_STEPS, f"batch.micro={micro}"], world).codes == [0] * world
    mine, theirs = worlds.journal(run), worlds.journal(reference / "twenty")
    assert len(mine) == 20
    for a, b in zip(mine, theirs, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-10)
    for name in ("eval/loss", "eval/top1", "eval/count"):
        assert mine[-1][name] == pytest.approx(theirs[-1][name], rel=1e-10)
    assert mine[-1]["eval/count"] == 360
    mine, theirs = worlds.tensors(run, 20), worlds.tensors(reference / "twenty", 20)
    assert mine.keys() == theirs.keys()
    assert any(name.endswith("running_var|buffer") for name in mine)
    assert any(name.endswith("|ema") for name in mine)
    for name, tensor in mine.items():
        scale = theirs[name].abs().max().item() or 1.0
        assert (tensor - theirs[name]).abs().max().item() <= 1e-10 * scale, name


def test_a_run_goes_on_with_other_processes(reference: Path, tmp_path: Path) -> None:
    """Cut from 2 ranks to 1 to 4: the hashes are those of the unbroken run."""
    run = tmp_path / "cut"
    preempted = {0: [("at_step", {"step": 20, "signal": "SIGTERM"})]}
    ended = worlds.train(run, THREE_EPOCHS, 2, preempted)
    assert ended.codes == [75, 75], ended.text
    ended = worlds.train(run, THREE_EPOCHS, 1, {0: [("at_step", {"step": 41, "signal": "SIGUSR1"})]})
    assert ended.codes == [75], ended.text
    assert "not bit-equal from here on" in ended.text
    ended = worlds.train(run, THREE_EPOCHS, 4)
    assert ended.codes == [0] * 4, ended.text
    assert worlds.ledger(run) == worlds.ledger(reference / "three")
    mine, theirs = worlds.journal(run), worlds.journal(reference / "three")
    assert [line["step"] for line in mine] == list(range(1, 67))
    assert [line["train/lr"] for line in mine] == [line["train/lr"] for line in theirs]
