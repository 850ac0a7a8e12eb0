"""``restrain sweep``: what the braces mean, what is frozen, and a sweep that is stopped and goes on."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restrain.cli.main import run
from restrain.errors import UserError
from restrain.recipe import load
from restrain.run.sweep import Axis, count, label, over_seeds, parse, points

TINY = ["length=2st", "evaluate.every=2st", "parallel.threads=1"]


def test_braces() -> None:
    axes, fixed = parse(["optimizer.lr={0.05, 0.1}", "seed={0..2}", "length=2ep", "a.b={4..0..-2}"])
    assert axes == [
        Axis("optimizer.lr", ("0.05", "0.1")),
        Axis("seed", ("0", "1", "2")),
        Axis("a.b", ("4", "2", "0")),
    ]
    assert fixed == ["length=2ep"]
    assert count(axes) == 18
    assert list(points(axes))[:2] == [
        ("optimizer.lr=0.05", "seed=0", "a.b=4"),
        ("optimizer.lr=0.05", "seed=0", "a.b=2"),
    ]
    lists, _ = parse(["data.augment={[], [{name: flip, p: 0.1}, {name: flip}]}"])
    assert lists[0].values == ("[]", "[{name: flip, p: 0.1}, {name: flip}]")
    assert parse(["schedule={name: cosine, final: 0.1}"]) == ([], ["schedule={name: cosine, final: 0.1}"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seed={0..4..0}", "one does not come to 4"),
        ("seed={4..0..1}", "one does not come to 0"),
        ("seed={1,,2}", "a value between the commas is missing"),
        ("seed={}", "a value between the commas is missing"),
        ("seed={1,1}", "a value stands twice"),
        ("seed={[1,2}", "brackets do not match"),
        ("seed={0..99999999}", "more than 1,000,000 values"),
    ],
)
def test_braces_that_make_no_sense(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse([word])


def test_a_key_that_stands_twice() -> None:
    with pytest.raises(UserError, match="seed stands twice"):
        parse(["seed={1,2}", "seed=3"])


def test_labels_are_file_names() -> None:
    assert label(("optimizer.lr=0.1", "seed=0"), 7) == "007_lr=0.1_seed=0"
    assert "/" not in label(("data.root=/a/b c",), 0)


def test_mean_and_standard_deviation_over_seeds() -> None:
    cells = over_seeds({("lr=1", "seed=0"): 1.0, ("lr=1", "seed=1"): 3.0, ("lr=2", "seed=0"): None})
    assert (cells[0].mean, cells[0].std, cells[0].missing) == (2.0, math.sqrt(2.0), 0)
    assert (cells[1].overrides, cells[1].missing, cells[1].std) == (("lr=2",), 1, None)
    assert math.isnan(cells[1].mean)


def test_nothing_starts_unless_every_point_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    assert run(["sweep", "digits_resnet20", "batch.group={16,48}", "--out", str(out)]) == 2
    assert "batch.group = 48 does not divide" in capsys.readouterr().err
    assert not out.exists()
    assert run(["sweep", "digits_resnet20", "seed=1", "--out", str(out)]) == 2
    assert "Nothing to sweep" in capsys.readouterr().err
    assert run(["sweep", "--out", str(out)]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_ten_thousand_points_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimizer.lr={1..100}", "seed={0..99}"]
    began = time.monotonic()
    assert run(["sweep", "digits_resnet20", *words, "--out", str(tmp_path / "sweep")]) == 2
    assert time.monotonic() - began < 30
    said = capsys.readouterr().err
    assert "100 of optimizer.lr x 100 of seed are 10,000 points" in said
    assert "--yes" in said


def test_frozen_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    words = ["optimizer.lr={0.05,0.1}", "seed={0..1}", *TINY]
    assert run(["sweep", "digits_resnet20", *words, "--out", str(out), "--dry-run"]) == 0
    files = sorted((out / "recipes").glob("*.yaml"))
    assert len(files) == 4
    recipe = load(str(files[-1])).recipe
    assert (recipe.optimizer.lr, recipe.seed, str(recipe.length)) == (0.1, 1, "2st")
    assert recipe.expect is None  # what is expected is of the recipe as it ships
    assert run(["sweep", "digits_resnet20", "seed={0..1}", "--out", str(out)]) == 2
    assert "holds another sweep" in capsys.readouterr().err
    (out / "sweep.json").write_text("{")
    assert run(["sweep", "--out", str(out)]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    words = ["optimizer.lr={0.05,0.1}", "seed={0..1}", "length=3ep", "parallel.threads=1"]
    command = [sys.executable, "-m", "restrain", "sweep"]
    first = subprocess.Popen(
        [*command, "digits_resnet20", *words, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while not any((out / "runs").glob("001*/metrics.jsonl")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[0].decode()
    assert first.returncode == 75, said
    done = [json.loads(path.read_text())["started"] for path in (out / "runs").glob("000*/run.json")]

    again = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert "[1/4]" not in again.stderr  # it was finished
    assert [json.loads(path.read_text())["started"] for path in (out / "runs").glob("000*/run.json")] == done
    cells = json.loads((out / "results.json").read_text())
    assert [cell["overrides"] for cell in cells] == [["optimizer.lr=0.05"], ["optimizer.lr=0.1"]]
    assert all(cell["n"] == 2 and cell["std"] is not None for cell in cells)
    assert len((out / "results.csv").read_text().splitlines()) == 5
    assert "best" in again.stdout
