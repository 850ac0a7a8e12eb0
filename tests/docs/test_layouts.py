"""The tables of docs/parallel.md are those of the code, and say what ``restrain check`` says."""

import importlib.util
from pathlib import Path

import pytest

from restrain.cli.main import run

SCRIPT = Path(__file__).parents[2] / "docs" / "layouts.py"


@pytest.fixture(scope="module")
def layouts():
    spec = importlib.util.spec_from_file_location("layouts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_tables_are_up_to_date(layouts) -> None:
    pytest.importorskip("deepspeed")
    assert layouts.PAGE.read_text() == layouts.page(), "run python docs/layouts.py"


def test_a_cell_is_what_check_says(layouts, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, strategy = "digits_resnet20", "parallel.strategy=fsdp"
    held = layouts.Built((recipe,)).told(2, 1, strategy)
    assert run(["check", recipe, "--no-run", "parallel.devices=2", strategy]) == 0
    assert f"): {held} (weights" in capsys.readouterr().out
