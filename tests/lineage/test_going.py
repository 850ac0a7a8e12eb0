"""Runs of claims: reused, shortened, judged, kept, and told where they cannot be."""

import json
import math
from pathlib import Path

import pytest

from restrain.errors import UserError
from restrain.lineage import bench as benches
from restrain.lineage import keeping
from restrain.lineage.bench import Bench, Stopped, Trained, label
from restrain.lineage.claim import Check, Claim, Outcome, Verdict
from restrain.lineage.going import examine, go
from restrain.lineage.page import render, told


def claim(number: int, run, *checks: Check) -> Claim:
    return Claim(
        number, f"title {number}", "text", "Somebody 2000 (arXiv:0000.00000)", "short", "expected", checks, run
    )


def seen(**numbers: float):
    return lambda bench: Outcome(numbers, "<svg></svg>", ("restrain train digits_resnet20",), ("a note",))


def fails(bench: Bench) -> Outcome:
    raise UserError("There is no such network.")


def test_what_cannot_run_says_why_and_the_next_one_runs(tmp_path: Path):
    said: list[str] = []
    claims = [claim(1, fails, Check("a", ">", 1.0)), claim(2, seen(a=2.0), Check("a", ">", 1.0))]
    reports = list(go(claims, Bench(tmp_path), said.append))
    assert [report.verdict.word for report in reports] == ["not run", "agrees"]
    assert reports[0].verdict.why == "There is no such network."
    assert any("not run" in line and "no such network" in line for line in said)
    assert not keeping.path_of(tmp_path, claims[0]).exists()


def test_a_signal_and_a_fault_of_ours_end_it(tmp_path: Path):
    def stopped(bench: Bench) -> Outcome:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        examine(claim(1, stopped), Bench(tmp_path))
    with pytest.raises(KeyError):
        examine(claim(1, seen(b=1.0), Check("a", ">", 1.0)), Bench(tmp_path))


def test_reports_are_kept_and_judged_anew(tmp_path: Path):
    first = claim(3, seen(a=2.0, b=math.nan, c=math.inf), Check("a", ">", 1.0))
    report = examine(first, Bench(tmp_path, budget=0.5))
    keeping.write(tmp_path, report)
    json.loads(keeping.path_of(tmp_path, first).read_text(), parse_constant=pytest.fail)  # strict JSON
    back = keeping.read(tmp_path, first)
    assert back is not None
    assert back.outcome is not None
    assert report.outcome is not None
    assert str(back.outcome) == str(report.outcome)
    assert (back.budget, back.seconds, back.facts) == (0.5, report.seconds, report.facts)
    harder = claim(3, first.run, Check("a", ">", 1.0), Check("a", ">", 3.0))
    assert keeping.read(tmp_path, harder).verdict == Verdict("agrees in part", (True, False))  # pyright: ignore


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"outcome": {"numbers": {}}}'])
def test_a_damaged_report_is_none(tmp_path: Path, damage: str):
    one = claim(3, seen(a=2.0))
    keeping.write(tmp_path, examine(one, Bench(tmp_path)))
    keeping.path_of(tmp_path, one).write_text(damage)
    assert keeping.read(tmp_path, one) is None
    (report,) = keeping.all_reports(tmp_path, [one], [])
    assert report.verdict.word == "not run"


def test_the_page_says_what_was_expected_and_seen(tmp_path: Path):
    whole = examine(claim(1, seen(a=2.0), Check("a", ">", 1.0), Check("a", ">", 3.0)), Bench(tmp_path))
    trial = examine(claim(2, seen(a=2.0), Check("a", ">", 1.0)), Bench(tmp_path, budget=0.1))
    absent = examine(claim(3, fails, Check("a", ">", 1.0)), Bench(tmp_path))
    page = render([whole, trial, absent])
    for text in ("a &gt; 3", "does not hold", "1 of the 2 expectations hold", "a note", "There is no such network."):
        assert text in page
    assert '<a href="https://arxiv.org/abs/0000.00000">' in page
    assert "src=" not in page
    assert "<script" not in page
    assert told(trial).startswith("A trial at 0.1 of the length")


def test_a_run_is_made_once_and_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ("digits_resnet20", "length=3st")
    first = Bench(tmp_path).train(*words)
    assert first.metrics["train/loss"] == first.loss > 0
    assert first.command == "restrain train digits_resnet20 length=3st"
    monkeypatch.setattr(benches, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = Bench(tmp_path).train(*words)
    assert again.path == first.path
    with pytest.raises(pytest.fail.Exception):
        Bench(tmp_path).train(*words, "seed=1")


def test_a_budget_shortens_every_training(tmp_path: Path):
    assert Bench(tmp_path, 0.1).shortened("digits_resnet20", ()) == ["length=2ep"]
    assert Bench(tmp_path, 0.1).shortened("digits_resnet20", ("seed=1", "length=40st")) == ["seed=1", "length=4st"]
    assert Bench(tmp_path, 0.001).shortened("digits_resnet20", ()) == ["length=1ep"]
    assert Bench(tmp_path).shortened("digits_resnet20", ("seed=1",)) == ("seed=1",)
    no_shape = "model.shape={depth: null, width: null}"  # of a network of one's own
    assert Bench(tmp_path, 0.1).shortened("digits_perceptron", (no_shape,))[0] == no_shape


def test_labels_are_names_of_folders_and_differ():
    one = label(("digits_resnet20", "model.join={name: scale, shortcut: 0.5}"))
    other = label(("digits_resnet20", "model.join={name: scale, shortcut: 0.6}"))
    assert one != other
    assert "/" not in one
    assert " " not in one
    assert len(label(("x" * 500,))) < 100


def test_curves_are_means_of_epochs(tmp_path: Path):
    lines = [{"step": n + 1, "epoch": n // 2, "wall": 0.0, "train/loss": float(n)} for n in range(4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Trained(tmp_path, ("x",)).by_epoch() == ([1, 2], [0.5, 2.5])
