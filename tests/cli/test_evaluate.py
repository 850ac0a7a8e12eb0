"""``restrain evaluate``: exact counts by class, calibration, confusions; of a run, and of a network without one."""

import json
from pathlib import Path

import pytest
import torch

from restrain.cli.main import run
from restrain.insight.confusion import BINS, Confusion
from tests import worlds


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    assert worlds.train(folder, ["length=2ep", "precision=fp32"]).codes == [0]
    return folder


def test_counts_are_exact(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "all.json"
    assert run(["evaluate", str(digits), "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "calibration error" in said
    assert "worst classes: " in said
    told = json.loads(out.read_text())
    rows = told["confusion"]["rows_are_labels"]
    assert [sum(row) for row in rows] == [36] * 10
    right = sum(rows[k][k] for k in range(10))
    assert told["metrics"]["eval/top1"] == pytest.approx(100.0 * right / 360)
    assert told["metrics"]["eval/top1"] == json.loads((digits / "run.json").read_text())["best"]["value"]
    assert sum(one["samples"] for one in told["calibration_bins"]) == 360
    assert sum(one["right"] for one in told["calibration_bins"]) == right
    accuracies = [one["accuracy"] for one in told["classes"]]
    assert accuracies == sorted(accuracies)


def test_a_network_without_a_run(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(digits)]) == 0
    of_run = capsys.readouterr().out.splitlines()[1:]
    assert run(["evaluate", "digits_resnet20", f"model.init.from={digits}", "precision=fp32"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == of_run
    assert run(["evaluate", "digits_resnet20"]) == 2
    assert "is a recipe and no run, so it has no weights" in capsys.readouterr().err
    assert run(["evaluate", "digits_resnet21"]) == 2
    assert "Did you mean 'digits_resnet20'?" in capsys.readouterr().err
    assert run(["evaluate", str(digits), "precision=fp64"]) == 2
    assert "precision=fp64, but the run's weights are of precision=fp32" in capsys.readouterr().err


def test_calibration_by_hand() -> None:
    """Four rows of two classes: confidences 0.9 (right), 0.9 (wrong), 0.6 (right), and one that does not count."""
    share = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]], dtype=torch.float64)
    labels, valid = torch.tensor([0, 1, 1, 0]), torch.tensor([True, True, True, False])
    found = Confusion(2)
    found.add(share.log(), labels, valid)
    assert found.counts.tolist() == [[1, 0], [1, 1]]
    assert found.calibration_error == pytest.approx(100 * (abs(1 - 1.8) + abs(1 - 0.6)) / 3)
    assert found.per_class() == [(1, 1, 2), (0, 1, 1)]
    assert found.pairs(5) == [(1, 0, 1)]
    halves = Confusion(2)
    halves.add(share[:1].log(), labels[:1], valid[:1])
    halves.add(share[1:].log(), labels[1:], valid[1:])
    assert halves.as_dict(["a", "b"]) == found.as_dict(["a", "b"])
    assert len(found.as_dict(["a", "b"])["calibration_bins"]) == BINS


def test_a_perfectly_confident_answer_is_in_the_last_bin() -> None:
    found = Confusion(2)
    found.add(torch.tensor([[1e9, 0.0]]), torch.tensor([0]), torch.tensor([True]))
    assert found.as_dict(["a", "b"])["calibration_bins"][-1]["samples"] == 1
    assert found.calibration_error == 0
