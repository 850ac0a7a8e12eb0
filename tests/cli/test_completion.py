"""Completion: what is offered, and that bash, zsh and fish offer it when asked in their own way."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restrain.cli.completion import SCRIPTS, answers
from restrain.cli.main import run
from restrain.errors import UserError
from restrain.recipe import available, load
from restrain.recipe.explain import possible_keys


def shell(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}, which is not installed")
    return path


@pytest.fixture
def environment() -> dict[str, str]:
    """One in which ``restrain`` is this one."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["train", "digits_"], [name for name in available() if name.startswith("digits_")]),
        (["train", "digits_resnet20", "optimizer.lr"], ["optimizer.lr=", "optimizer.lr_per=", "optimizer.lr_rule="]),
        (["show", "digits_resnet20", "ema.d"], ["ema.decay="]),
        (["show", "digits_resnet20", "optimizer.name=ada"], ["optimizer.name=adamw", "optimizer.name=adan"]),
        (["show", "digits_resnet20", "deterministic="], ["deterministic=true", "deterministic=false"]),
        (["show", "digits_resnet20", "data.threads="], ["data.threads=auto"]),
        (["show", "digits_resnet20", "schedule.at"], []),  # a cosine has none
        (["show", "cifar10_resnet20", "schedule.at"], ["schedule.at="]),
        (["show", "digits_resnet20", "--diff", "digits_pl"], ["digits_plain56"]),
        (["show", "--di"], ["--diff"]),
        (["why", "schedule.w"], ["schedule.warmup", "schedule.warmup_from", "schedule.warmup_prefix"]),
        (["why", "seed", "digits_pl"], ["digits_plain56"]),
        (["data", "in"], ["index"]),
        (["completion", "f"], ["fish"]),
        (["nonsense", "x"], []),
        (["train", "no_such_recipe", "see"], []),
    ],
)
def test_what_is_offered(words: list[str], expected: list[str]) -> None:
    assert answers(words) == expected


def test_commands() -> None:
    assert set(answers([""])) >= {"train", "show", "why", "check", "recipes", "--help"}


def test_every_offered_key_is_one() -> None:
    """Each key that is offered for a recipe is legal there, or has a reason that is not its name."""
    for key in possible_keys(load("digits_resnet20").recipe):
        told = ""
        try:
            load("digits_resnet20", [f"{key}=null"])
        except UserError as error:
            told = str(error)
        assert "is not a key" not in told, key


def test_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder = tmp_path / "runs" / "digits" / "one"
    run_folder.mkdir(parents=True)
    (run_folder / "recipe.lock.yaml").touch()
    (tmp_path / "runs" / "digits" / "other").mkdir()
    assert answers(["resume", ""]) == ["runs/digits/one"]
    assert answers(["resume", "ru"]) == ["runs/"]
    assert answers(["resume", "runs/digits/o"]) == ["runs/digits/one", "runs/digits/other/"]
    assert answers(["resume", f"{tmp_path}/runs/digits/on"]) == [str(run_folder)]
    assert answers(["why", "seed", "runs/digits/on"]) == ["runs/digits/one"]


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "bsh"]) == 2
    assert "Did you mean 'bash'?" in capsys.readouterr().err
    assert run(["completion", "bash", "more"]) == 2
    assert run(["completion"]) == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("restrain sh", ["show"]),
        ("restrain train digits_pl", ["digits_plain56"]),
        ("restrain show digits_resnet20 optimizer.mom", ["optimizer.momentum="]),
        ("restrain show digits_resnet20 optimizer.name=ada", ["adamw", "adan"]),  # behind =, where bash splits words
        ("restrain show digits_resnet20 loss.name=", ["cross_entropy", "bce"]),
    ],
)
def test_bash(line: str, expected: list[str], environment: dict[str, str]) -> None:
    program = f"""
eval "$(restrain completion bash)"
complete -p restrain | grep -q _restrain || exit 9
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
_restrain
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        [shell("bash"), "--norc", "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == expected


def test_fish(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "restrain.fish"
    script.write_text(SCRIPTS["fish"])
    for line, expected in (
        ("restrain train digits_pl", ["digits_plain56"]),
        ("restrain show digits_resnet20 optimizer.name=ada", ["optimizer.name=adamw", "optimizer.name=adan"]),
        ("restrain check ", available()),
    ):
        program = f"source {script}; complete -C {line!r}"
        home = {**environment, "HOME": str(tmp_path)}
        done = subprocess.run(
            [shell("fish"), "--no-config", "-c", program],
            capture_output=True,
            text=True,
            env=home,
            check=True,
            cwd=tmp_path,
        )
        found = [one.split("\t")[0] for one in done.stdout.splitlines()]
        assert {one for one in found if one != script.name} == set(expected)


def test_zsh(environment: dict[str, str], tmp_path: Path) -> None:
    """A real one at a terminal: the tab key completes the line, which is then run."""
    path = shell("zsh")
    (tmp_path / "script.zsh").write_text(SCRIPTS["zsh"])
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(path, [path, "-f", "-i"], {**environment, "HOME": str(tmp_path), "TERM": "dumb", "PS1": "ready> "})
    try:
        assert "ready>" in _until(terminal, "ready>")
        os.write(terminal, b"autoload -Uz compinit; compinit -u -D; source ./script.zsh; print lo''aded\r")
        assert "loaded" in _until(terminal, "loaded")
        os.write(terminal, b"restrain show digits_pl\t seed=41 | grep ^seed\r")
        assert "seed: 41" in _until(terminal, "seed: 41")
    finally:
        os.close(terminal)
        os.kill(child, 9)
        os.waitpid(child, 0)


def _until(terminal: int, wanted: str, seconds: float = 30) -> str:
    seen, ends = "", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < ends:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen
