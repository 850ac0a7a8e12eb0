from pathlib import Path

import pytest

from restrain.cli.main import run
from restrain.recipe import load


def test_what_is_shown_is_valid_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "digits_plain56", "seed=7", "schedule.name=linear"]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    recipe = load(str(shown)).recipe
    assert recipe == load("digits_plain56", ["seed=7", "schedule.name=linear"]).recipe
    assert recipe.model.join.name == "none"
    assert run(["show", str(shown)]) == 0
    assert capsys.readouterr().out == shown.read_text()


def test_a_lock_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["show", "digits_resnet20"])
    text = capsys.readouterr().out
    lock = tmp_path / "recipe.lock.yaml"
    lock.write_text(text + "lock:\n  recipe: digits_resnet20\n")
    assert run(["show", str(lock)]) == 0
    assert capsys.readouterr().out == text
