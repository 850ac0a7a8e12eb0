"""Restrain from Python: the page's own program, doctests, and an import that stays light."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import restrain
from restrain import api
from restrain.errors import UserError
from tests import worlds

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("api")
    assert worlds.train(top / "runs" / "first", ["length=4st", "evaluate.every=2st", "ema={decay: 0.5}"]).codes == [0]
    return top


def test_doctests() -> None:
    assert doctest.testmod(api).failed == 0
    assert doctest.testmod(api).attempted > 0


def test_the_pages_program(first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(first)
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(program, "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    assert "0.2 command line" in out
    assert "finished {'metric': 'eval/top1'" in out
    assert isinstance(names["model"](torch.zeros(2, 1, 8, 8)), torch.Tensor)


def test_a_run(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = restrain.runs(first)
    assert run.path == first / "runs" / "first"
    assert list(run.metrics.index) == [1, 2, 3, 4]
    assert run.metrics["eval/top1"].notna().tolist() == [False, True, False, True]
    assert [path.name for path in run.checkpoints] == sorted(path.name for path in run.checkpoints)
    assert run.summary.recipe == "digits_resnet20"
    monkeypatch.setattr(api, "find_spec", lambda name: None)
    assert run.metrics["step"] == [1, 2, 3, 4]
    assert run.metrics["eval/count"] == [None, 360, None, 360]
    with pytest.raises(UserError, match="is not a run folder"):
        restrain.open_run(first)
    with pytest.raises(AttributeError, match="no attribute 'opne_run'"):
        restrain.opne_run  # noqa: B018


def test_the_import_is_light() -> None:
    program = "import sys, restrain; restrain.open_run; print([m for m in ('torch', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
