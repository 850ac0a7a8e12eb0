from pathlib import Path

import pytest

from restrain.cli.main import run
from restrain.recipe import load
from tests import worlds


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


def rows(text: str) -> dict[str, list[str]]:
    lines = [[cell for cell in line.split("  ") if cell] for line in text.splitlines()]
    return {line[0]: [cell.strip() for cell in line[1:]] for line in lines}


def test_the_difference_of_two_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "digits_plain56", "seed=7", "--diff", "digits_resnet56"]) == 0
    found = rows(capsys.readouterr().out)
    assert found["key"] == ["digits_plain56 seed=7", "digits_resnet56"]
    assert found["model.join.name"] == ["none", "add"]
    assert found["seed"] == ["7", "0"]
    assert set(found) == {"key", "model.join.name", "seed", "expect.value", "expect.tolerance"}


def test_keys_that_one_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    adam = ["optimizer.name=adamw", "optimizer.lr=0.1"]
    assert run(["show", "digits_resnet20", *adam, "--diff", "digits_resnet20"]) == 0
    found = rows(capsys.readouterr().out)
    assert found["optimizer.betas"] == ["[0.9, 0.999]", "-"]
    assert found["optimizer.momentum"] == ["-", "0.9"]


def test_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "digits_resnet20", "--diff", "digits_resnet20"]) == 0
    assert capsys.readouterr().out == "digits_resnet20 and digits_resnet20 are the same recipe.\n"


def test_a_run_beside_its_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert worlds.train(folder, ["length=2st", "optimizer.lr=0.05"]).codes == [0]
    assert run(["show", "digits_resnet20", "--diff", str(folder)]) == 0
    found = rows(capsys.readouterr().out)
    assert found["optimizer.lr"] == ["0.1", "0.05"]
    assert found["length"] == ["20ep", "2st"]
    assert run(["show", str(folder), "--diff", str(folder)]) == 0
    assert "are the same recipe" in capsys.readouterr().out
    assert run(["show", str(folder)]) == 0
    assert "\nlength: 2st\n" in capsys.readouterr().out


def test_others_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for other, said in (
        ("digits_resent20", "There is no recipe 'digits_resent20'. Did you mean 'digits_resnet20'?"),
        (str(tmp_path), "not of a run: it has no recipe.lock.yaml"),
        ("./mine.yaml", "There is no file ./mine.yaml."),
    ):
        assert run(["show", "digits_resnet20", "--diff", other]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
