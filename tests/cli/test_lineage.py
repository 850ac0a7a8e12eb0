"""``restrain lineage``: claims that need no training, from the command to the page."""

import json
from pathlib import Path

import pytest

from restrain.cli.main import run
from restrain.lineage.table import CLAIMS


def test_two_claims_from_the_command_to_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lineage"
    assert run(["lineage", "5", "12", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Basic block and bottleneck" in said
    assert "6/6" in said
    page = (out / "lineage.html").read_text()
    assert page.count("<article") == 18
    assert page.count('<span class="verdict yes">agrees</span></h2>') == 2
    assert page.count("It has not been asked for.") == 16
    kept = json.loads((out / "claims" / "05.json").read_text())
    assert kept["outcome"]["numbers"]["parameters of cifar_resnet20, 10^6"] == pytest.approx(0.27, abs=0.005)
    assert run(["lineage", "8", "-o", str(out)]) == 0
    assert (out / "lineage.html").read_text().count('<span class="verdict yes">agrees</span></h2>') == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["19"], "no claim '19'"),
        (["five"], "no claim 'five'"),
        (["5", "--budget", "0"], "--budget is 0"),
        (["5", "-o", __file__], "is a file. Name a folder"),
    ],
)
def test_bad_input(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lineage", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_found_before_the_first_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["lineage", "5", "-o", str(tmp_path / "file" / "lineage")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: Cannot write the page ({tmp_path}/file")
    assert "claim 5" not in said


def test_a_trial_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lineage", "5", "--budget", "0.5", "-o", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "claim 5: agrees (trial), " in said.err
    assert "agrees (trial)  6/6" in said.out
    assert ">agrees (trial)</span></h2>" in (tmp_path / "lineage.html").read_text()
    assert run(["lineage", "5", "-o", str(tmp_path)]) == 0
    assert "(trial)" not in capsys.readouterr().out


def test_a_list_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["lineage", "--list"]) == 0
    assert all(claim.title in capsys.readouterr().out for claim in CLAIMS[:1])
    assert not list(tmp_path.iterdir())


SHORT = [claim for claim in CLAIMS if claim.number != 6]  # whose thousand layers take more than a minute


@pytest.mark.slow
@pytest.mark.parametrize("claim", SHORT, ids=lambda claim: str(claim.number))
def test_every_claim_runs_and_sees_what_it_is_judged_by(claim, tmp_path_factory: pytest.TempPathFactory) -> None:
    """At a fifteenth of the length, runs shared between the claims: no verdict, but every number is there."""
    from restrain.lineage.bench import Bench
    from restrain.lineage.going import examine

    folder = tmp_path_factory.getbasetemp() / "claims"
    report = examine(claim, Bench(folder, budget=1 / 15))
    assert report.outcome is not None, report.verdict.why
    assert len(report.verdict.held) == len(claim.checks)
    assert report.outcome.figure.startswith("<svg")
