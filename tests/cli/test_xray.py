"""``restrain probe`` and ``restrain lesion``: their tables, files and refusals."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from restrain.cli.main import run as command
from restrain.training import memory
from restrain.training.evaluate_run import evaluate_run
from tests import worlds

SHORT = ["precision=fp32", "length=4st", "evaluate.every=4st", "checkpoint.every=2st", "checkpoint.keep=9"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xray") / "run"
    assert worlds.train(folder, [*SHORT, "model.zero_init=false"]).codes == [0]
    return folder


def test_a_run_is_probed_at_its_newest_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["probe", str(run), "-o", str(tmp_path / "p.svg"), "--json", str(tmp_path / "p.json")]) == 0
    said = capsys.readouterr().out
    assert f"weights after step 4 of {run}: 16 rows of the first training step" in said
    assert said.count(".join  ") == 9
    assert "a ReLU follows each join (post-activation)" in said
    told = json.loads((tmp_path / "p.json").read_text())
    assert len(told["joins"]) == len(told["ratio"]) == 9
    assert [one["holds"] for one in told["propagation"]] == [False] * 3
    assert all(one["error"] > 1e-3 for one in told["propagation"])
    picture = ET.parse(tmp_path / "p.svg").getroot()
    curves = [one for one in picture.iter("{http://www.w3.org/2000/svg}path") if one.get("class") == "curve"]
    assert len(curves) == 6  # ratio, cosine, gradient, mean, variance, dead units


def test_fresh_weights_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["probe", "digits_resnet20", "model.join={name: none}", "-o", str(tmp_path / "p.html")]
    assert command(words) == 0
    said = capsys.readouterr().out
    assert "fresh weights of digits_resnet20 (seed 0)" in said
    assert "y = f(x)" in said
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")


def test_random_rows_where_the_data_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["probe", "cifar10_resnet20", f"data.root={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "random rows, as the data cannot be opened" in said
    assert str(tmp_path) in said


def test_a_network_that_adds_for_itself(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("timm")
    words = ["probe", "digits_resnet20", "model.name=timm/resnet10t", "batch.global=16"]
    assert command(words) == 0
    assert "signal propagation: not checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["probe", "digits_resnet20", "-o", "p.png"], "ends in .svg or .html"),
        (["probe", "RUN", "seed=1"], "seed cannot be set here"),
        (["lesion", "RUN", "--kinds", "removd"], "Did you mean 'removed'"),
    ],
)
def test_wrong_wishes(run: Path, capsys: pytest.CaptureFixture, words: list[str], told: str) -> None:
    assert command([str(run) if word == "RUN" else word for word in words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["probe", "digits_resnet20"], "takes 2.16 MB for its weights and their gradients alone"),
        (["lesion", "RUN"], "takes 1.08 MB for its weights alone"),
    ],
)
def test_a_network_larger_than_the_machine(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: list, told: str
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER", limit)
    limit.write_text("1000000\n")
    assert command([str(run) if word == "RUN" else word for word in words]) == 1
    said = capsys.readouterr().err
    assert f"model.name=cifar_resnet20 {told}, and this machine has 1 MB of memory" in said
    limit.write_text("max\n")
    assert memory.held_by(torch.device("cpu")) > 1_000_000


def test_lesions_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["lesion", str(run), "--kinds", "removed,swapped", "--json", str(tmp_path / "l.json")]) == 0
    said = capsys.readouterr().out
    told = json.loads((tmp_path / "l.json").read_text())
    metrics = evaluate_run(run).metrics
    assert told["samples"] == 360
    assert told["whole"]["top1"] == pytest.approx(metrics["eval/top1"], abs=1e-9)
    assert told["whole"]["loss"] == pytest.approx(metrics["eval/loss"], rel=1e-5)
    assert [one["kind"] for one in told["lesions"]] == ["removed"] * 9 + ["swapped"] * 4
    assert len({one["loss"] for one in told["lesions"]}) == 13  # each lesion is another network
    assert said.count("removed  ") == 9


def test_a_removed_block_scores_as_a_network_without_its_branch(run: Path, tmp_path: Path) -> None:
    """Against weights of zero in the branch's last scale, evaluated whole."""
    from restrain.training.lesion import lesion
    from restrain.training.loaded import load_weights

    found = {one.lesion.label: one.score for one in lesion(run, ["removed"]).lesions}
    model = load_weights(run).model
    bn2 = model.get_submodule("layer2.1.bn2")
    with torch.no_grad():
        bn2.weight.zero_()
        bn2.bias.zero_()
    from restrain.training import build

    recipe = load_weights(run).recipe
    data = build.open_data(recipe)
    task = build.task_around(recipe, model, data).eval()
    right = total = 0
    loader = build.build_eval_loader(recipe, data, build.World(), build.Placement("cpu", 64, 1, 1))
    for batch in loader:
        logits = task(batch.images)
        right += int(((logits.argmax(-1) == batch.labels) & batch.valid).sum())
        total += int(batch.valid.sum())
    loader.close()
    assert found["layer2.1"]["top1"] == pytest.approx(100.0 * right / total, abs=1e-9)


def test_fewer_samples(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["lesion", str(run), "--kinds", "prefix", "--samples", "64"]) == 0
    assert "weights, 64 samples" in capsys.readouterr().out
