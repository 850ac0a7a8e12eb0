"""The border where errors become one paragraph and an exit code."""

import subprocess
import sys
import time

import pytest

from restrain import __version__
from restrain.cli import main as cli
from restrain.errors import UserError, WorldError

HEAVY = "{'torch', 'lightning', 'torchvision', 'timm', 'numpy', 'wandb', 'pydantic', 'rich'}"


def python(program: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESTRAIN_DEBUG", raising=False)


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load(*_: object) -> None:
        raise error

    monkeypatch.setattr("restrain.recipe.load", load)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    told = capsys.readouterr().out
    assert "Usage: restrain" in told
    assert "show" in told
    assert cli.run([]) == 0
    assert capsys.readouterr().out == told


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"restrain {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    done = python(
        f"import sys; from restrain.cli.main import run; run(['--help']); sys.exit(str(set(sys.modules) & {HEAVY}))"
    )
    assert done.stderr.strip() == "set()"


def best_of_three(*arguments: str) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "restrain", *arguments], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.slow  # a busy machine is no fault of ours
def test_it_answers_at_once() -> None:
    assert best_of_three("--help") <= 0.3
    assert best_of_three("show", "imagenet_resnet50") <= 0.5


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["shwo", "x"], "error: There is no command 'shwo'. Did you mean 'show'? Commands: "),
        (["show"], "error: Missing argument 'NAME|FILE|RUN'. See restrain show --help."),
        (["show", "digits_resnet20", "--seed", "1"], "error: No such option: --seed. See restrain show --help."),
        (["--verbose"], "error: No such option: --verbose"),
        (["show", "digits_resnet20", "seed=x"], "error: command line: seed: 'x' is not an integer."),
    ],
)
def test_what_the_user_wrote(capsys: pytest.CaptureFixture[str], argv: list[str], told: str) -> None:
    assert cli.run(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(told)
    assert err.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [(UserError("Write this."), 2), (WorldError("The disk is full."), 1)])
def test_errors_keep_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    raising(monkeypatch, error)
    assert cli.run(["show", "digits_resnet20"]) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_fault_of_ours_is_one_paragraph(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(monkeypatch, ZeroDivisionError("two\nlines"))
    assert cli.run(["show", "digits_resnet20"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ZeroDivisionError: two lines (at ")
    assert "test_main.py:" in told
    assert told.endswith("RESTRAIN_DEBUG=1 shows the traceback.\n")
    assert told.count("\n") == 1


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RESTRAIN_DEBUG", "1")
    assert cli.run(["show", "nothing"]) == 2
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told
    assert "error: There is no recipe 'nothing'." in told


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert cli.run(["show", "digits_resnet20"]) == 130
    assert capsys.readouterr().err.strip() == "stopped by Ctrl-C before the command was done"


def test_a_command_may_choose_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    raising(monkeypatch, typer.Exit(75))
    assert cli.run(["show", "digits_resnet20"]) == 75


def test_a_reader_that_leaves_early() -> None:
    shown = subprocess.Popen(
        [sys.executable, "-m", "restrain", "show", "digits_resnet20"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.close()
    told = shown.stderr.read()
    shown.stderr.close()
    assert (shown.wait(), told) == (1, b"")


def test_python_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "restrain", "show", "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no recipe 'nothing'.")
