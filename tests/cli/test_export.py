"""``restrain export``: each form computes what the run's network computes, and says what it is."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

from restrain.cli.main import run
from restrain.training import export as exporting
from restrain.training.export import export
from restrain.training.loaded import load_weights
from tests import worlds

SHORT = ["length=4st", "evaluate.every=2st", "checkpoint.every=2st"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps an average."""
    folder = tmp_path_factory.mktemp("export") / "run"
    assert worlds.train(folder, [*SHORT, "ema={decay: 0.5}"]).codes == [0]
    return folder


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet-style network, a few steps old: timm has it."""
    folder = tmp_path_factory.mktemp("export18") / "run"
    assert worlds.train(folder, [*SHORT, "model.name=resnet18", "batch.global=16"]).codes == [0]
    return folder


@pytest.mark.parametrize("form", ["safetensors", "torch.export", "onnx"])
def test_round_trips(digits: Path, tmp_path: Path, form: str) -> None:
    found = export(digits, form, tmp_path / "model.bin")
    assert found.difference < 1e-5
    assert found.weights == "EMA weights"
    told = json.loads(found.sidecar.read_text())
    assert told["classes"] == [str(n) for n in range(10)]
    assert told["preprocessing"]["mean"] == [0.3053]
    assert told["input"]["shape"] == ["batch", 1, 8, 8]
    assert told["provenance"]["recipe"] == "digits_resnet20"
    assert told["provenance"]["step"] in (2, 4)


def test_timm_loads_it(resnet18: Path, tmp_path: Path) -> None:
    found = export(resnet18, "timm", tmp_path / "model.safetensors")
    assert found.difference < 1e-4
    twin = timm.create_model("resnet18", checkpoint_path=str(found.path), num_classes=10, in_chans=1).eval()
    loaded = load_weights(resnet18)
    images = exporting.inputs(loaded.recipe, 8)
    with torch.no_grad():
        assert torch.allclose(twin(images), loaded.model(images), atol=1e-5)


def test_raw_weights_are_others(digits: Path) -> None:
    average, raw = load_weights(digits, "ema"), load_weights(digits, "raw")
    assert (average.weights, raw.weights) == ("EMA weights", "weights")
    assert not torch.equal(average.model.state_dict()["fc.weight"], raw.model.state_dict()["fc.weight"])
    saved = worlds.tensors(digits, raw.located.step)
    assert torch.equal(raw.model.state_dict()["fc.weight"], saved["fc.weight|param"])
    assert torch.equal(average.model.state_dict()["fc.weight"], saved["fc.weight|ema"])


def test_what_computes_something_else_is_removed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    _, write = exporting.FORMS["safetensors"]

    def wrong(loaded, images, target):
        compute = write(loaded, images, target)
        return lambda x: compute(x) * 1.01

    monkeypatch.setitem(exporting.FORMS, "safetensors", (".safetensors", wrong))
    assert run(["export", str(digits), "--to", "safetensors", "-o", str(out)]) == 1
    assert "computes other logits than the run's network" in capsys.readouterr().err
    assert not out.exists()


def test_what_is_refused(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*argv: str) -> str:
        assert run(["export", *argv]) in (1, 2)
        return capsys.readouterr().err

    out = str(tmp_path / "m")
    assert "timm has no cifar_resnet20" in refused(str(digits), "--to", "timm", "-o", out)
    assert "Did you mean 'onnx'?" in refused(str(digits), "--to", "onxn")
    assert "name a file in a folder that exists" in refused(str(digits), "--to", "safetensors", "-o", str(tmp_path))
    assert "is neither a run folder nor a checkpoint" in refused(str(tmp_path), "--to", "safetensors")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert "--to onnx needs onnxruntime. Install" in refused(str(digits), "--to", "onnx", "-o", out)
    half = tmp_path / "half"
    shutil.copytree(digits, half)
    info = json.loads((half / "run.json").read_text())
    (half / "run.json").write_text(json.dumps(info | {"state": "interrupted"}))
    assert "is not finished (interrupted, checkpoint of step" in refused(str(half), "--to", "safetensors", "-o", out)
    assert run(["export", str(half), "--to", "safetensors", "-o", out, "--unfinished"]) == 0
    plain = tmp_path / "plain"
    assert worlds.train(plain, SHORT).codes == [0]
    assert "keeps no moving average" in refused(str(plain), "--to", "safetensors", "--weights", "ema", "-o", out)
