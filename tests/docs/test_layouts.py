"""The tables of docs/parallel.md are those of the code, and say what ``restrain check`` says."""

import importlib
from pathlib import Path

import pytest

from restrain.cli.main import run

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def layouts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        return importlib.import_module("layouts")


@pytest.mark.slow
def test_the_tables_are_up_to_date(layouts) -> None:
    pytest.importorskip("deepspeed")
    assert layouts.PAGE.read_text() == layouts.page(), "run python docs/layouts.py"


def test_a_cell_is_what_check_says(layouts, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, strategy = "digits_resnet20", "parallel.strategy=fsdp"
    held = layouts.Built((recipe,)).told(2, 1, strategy)
    assert run(["check", recipe, "--no-run", "parallel.devices=2", strategy]) == 0
    assert f"and holds {held} between backward pass and update" in capsys.readouterr().out
