"""Every command of README and docs runs, in the order of its page, in a folder that was set up as the pages say."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from restrain.cli.main import run
from tests.run.wandb_server import serving

from .test_docs import PAGES, START, blocks, commands, name

SHORT = "length=4st"  # of trainings with pictures; those of the digits take seconds as they are
FAST = {"resolution.eval=288": "resolution.eval=64", "resolution.eval_resize=320": "resolution.eval_resize=72"}
WITH = [page for page in PAGES if commands(page)]


def shortened(argv: list[str]) -> list[str]:
    """The same command on less."""
    argv = [FAST.get(word, word) for word in argv]
    if argv[:2] == ["train", "pictures.yaml"]:
        argv = [*argv[:2], SHORT, *argv[2:]]
    if argv[0] == "sweep":
        argv = [re.sub(r"\{0\.\.4\}", "{0..1}", word) for word in argv]
    return argv


def ran(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["restrain", *argv])  # what several processes are started with
    return run(argv)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the first steps, all of them taken."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        (recipe,) = blocks(START, "yaml")
        (folder / "pictures.yaml").write_text(recipe)
        for number, program in enumerate(blocks(START, "python")):
            exec(compile(program, f"docs/start.md, program {number + 1}", "exec"), {})
        for argv in commands(START):
            assert ran(shortened(argv), monkeypatch) == 0, argv
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH, ids=name)
def test_every_command_runs(page: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == START:
        assert (place / "runs" / "torchrun").is_dir()
        return
    folder = tmp_path / "here"
    shutil.copytree(place, folder)
    monkeypatch.chdir(folder)
    with serving() as server:  # for restrain sync
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        for argv in commands(page):
            assert ran(shortened(argv), monkeypatch) == 0, argv
