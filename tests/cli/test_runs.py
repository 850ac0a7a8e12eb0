"""``restrain runs`` and ``restrain compare``: what is said of runs, whole and broken."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from restrain.cli.main import run
from restrain.run.history import Column, first_difference, parting
from restrain.run.summary import find_runs, summarise
from tests import worlds

SHORT = ["length=4st", "evaluate.every=2st", "checkpoint.every=2st"]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, and one with another learning rate that ended before its time."""
    top = tmp_path_factory.mktemp("runs")
    worlds.train(top / "a", SHORT)
    worlds.train(top / "deep" / "b", [*SHORT, "seed=1"])
    worlds.train(top / "c", [*SHORT, "optimizer.lr=0.2"])
    info = json.loads((top / "c" / "run.json").read_text())
    info.update(state="running", step=0)
    (top / "c" / "run.json").write_text(json.dumps(info))
    return top


def listed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict]:
    assert run(["runs", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_list(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {Path(one["path"]).name: one for one in listed(capsys, str(three))}
    assert set(found) == {"a", "b", "c"}
    assert found["a"]["state"] == "finished"
    assert found["a"]["recipe"] == "digits_resnet20"
    assert "length=4st" in found["a"]["changes"]
    assert "seed=1" in found["b"]["changes"]
    assert found["a"]["verdict"]["word"] == "not comparable"
    assert found["a"]["best"]["metric"] == "eval/top1"
    assert (found["c"]["state"], found["c"]["step"]) == ("killed", 4)
    assert run(["runs", str(three)]) == 0
    table = capsys.readouterr().out
    assert "optimizer.lr=0.2" in table
    assert "killed at step 4 of 4" in table


def test_broken_and_foreign_folders_are_listed_and_harm_nothing(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in {
        "torn": '{"state": "fin',
        "list": "[1]",
        "odd": '{"state": 7}',
        "nan": '{"best": NaN}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.pdf").write_text("")
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "recipe.lock.yaml").write_text("")
    os.symlink(tmp_path, tmp_path / "again")
    (tmp_path / "good").symlink_to(three / "a")
    found = {Path(one["path"]).name: one for one in listed(capsys, str(tmp_path))}
    assert set(found) == {"torn", "list", "odd", "nan", "early"}
    assert all(one["state"] == "unreadable" and one["why"] for name, one in found.items() if name not in ("nan",))
    assert run(["runs", str(tmp_path / "foreign")]) == 0
    assert "There are no runs in" in capsys.readouterr().out
    assert run(["runs", str(tmp_path / "nowhere")]) == 2
    assert run(["runs", str(three), "--sort", "bset"]) == 2
    assert "Did you mean 'best'?" in capsys.readouterr().err


def test_a_failure_is_kept_with_its_reason(tmp_path: Path) -> None:
    ended = worlds.train(tmp_path / "run", SHORT, faults={0: [("disk_full", {"step": 2})]})
    assert ended.codes == [1], ended.text
    one = summarise(tmp_path / "run")
    assert one.state == "failed"
    assert one.why is not None
    assert one.why in ended.text.replace("\n", " ")
    assert worlds.train(tmp_path / "run", SHORT).codes == [0]
    assert summarise(tmp_path / "run").why is None


def test_metrics_of_other_steps_are_not_equal() -> None:
    from restrain.cli.compare import _curves
    from restrain.run.history import Column

    one, other = (Column(np.array(steps), np.array([1.0, 2.0])) for steps in ([6, 12], [2, 4]))
    assert _curves({"eval/loss": one}, {"eval/loss": other})[0] == "eval/loss: no step in common"
    assert _curves({"eval/loss": one}, {"eval/loss": one})[0] == "eval/loss: bit-equal"


def test_compare(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(three / "a"), str(three / "deep" / "b"), str(three / "c")]) == 0
    out = capsys.readouterr().out
    assert "seed" in out
    assert "optimizer.lr" in out
    assert "a and b\nother samples" in out
    assert "a and c\nthe same samples in each step up to 4" in out
    assert "train/loss: differs from step 2 on" in out  # the first loss is of the same weights
    assert run(["compare", str(three / "a"), str(three / "a")]) == 0
    assert "train/loss: bit-equal" in capsys.readouterr().out
    assert run(["compare", str(three / "a")]) == 2
    assert run(["compare", str(three / "a"), str(three)]) == 2
    assert "cannot be compared" in capsys.readouterr().err


def test_find_runs_goes_to_any_depth(three: Path) -> None:
    assert [path.name for path in find_runs(three)] == ["a", "c", "b"]
    assert list(find_runs(three / "a")) == [three / "a"]


def test_where_curves_part() -> None:
    steps = np.arange(1, 401)
    noise = 1e-3 * np.sin(steps)
    one = Column(steps, 1.0 + noise)
    assert parting(one, one).differs_at is None
    near = parting(one, Column(steps, np.where(steps < 50, one.values, 1.0 + 1e-3 * np.cos(steps))))
    assert (near.differs_at, near.parts_at) == (50, None)
    far = parting(one, Column(steps, np.where(steps < 200, one.values, 2.0)))
    assert far.differs_at == 200
    assert far.parts_at is not None
    assert 200 <= far.parts_at <= 205
    wiggle = parting(one, Column(steps, np.where(steps < 395, one.values, 9.0)))
    assert (wiggle.differs_at, wiggle.parts_at) == (395, None)
    assert first_difference({1: (1,), 2: (2,)}, {1: (1,), 2: (3,), 3: (4,)}) == (2, 2)
