"""The list of recipes: in a pipe, on wide and narrow terminals, as JSON."""

import json
import resource
import subprocess
import sys

import pytest

from restrain.cli.main import run
from restrain.recipe import available, load


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))


def test_in_a_pipe_a_recipe_is_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run(["recipes"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "name"
    assert [line.split()[0] for line in lines] == available()
    (digits,) = (line for line in lines if line.startswith("digits_resnet20 "))
    for cell in (" classify ", " cifar_resnet20 ", " 98.9 % eval/top1 ", " reproduced ", "under a minute", "seeds 0-4"):
        assert cell in digits
    assert "\x1b" not in "".join(lines)


def test_words_narrow_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "digits", "plain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header, *names = [line.split()[0] for line in lines]
    assert header == "name"
    assert "digits_plain56" in names
    assert all(name.startswith("digits_") for name in names)
    assert "digits_resnet20" not in names
    assert run(["recipes", "TORCHVISION"]) == 0  # in the source alone
    assert "imagenet_resnet50 " in capsys.readouterr().out
    assert run(["recipes", "digits_resent20"]) == 2
    assert "Did you mean 'digits_resnet20'?" in capsys.readouterr().err


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == available()
    (digits,) = (one for one in found if one["name"] == "digits_resnet20")
    assert digits["expected"] == load("digits_resnet20").recipe.expect.value  # type: ignore[union-attr]
    assert digits["hardware"] == "2 CPU cores"
    assert digits["time"] == "under a minute"


@pytest.mark.parametrize("columns", [40, 80, 400])
def test_on_a_terminal_nothing_wraps(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch, columns)
    assert run(["recipes"]) == 0
    lines = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= columns
    names = [line.split()[0] for line in lines if line[:1] not in (" ", "")]
    assert [name for name in names if name != "name"] == available()
    for name in available():
        source = load(name).recipe.expect.source if load(name).recipe.expect else "-"  # type: ignore[union-attr]
        assert source.replace(" ", "") in "".join("".join(lines).split())  # a long word may be cut


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [["recipes"], ["show", "digits_plain56", "--diff", "digits_resnet20"], ["why", "batch.micro", "imagenet_resnet50"]],
    ids=" ".join,
)
def test_it_answers_at_once(argv: list[str]) -> None:
    """Processor time: a busy machine is no fault of ours."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "restrain", *argv], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0
