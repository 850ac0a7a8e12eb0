"""The figures of docs/parallel.md are what their scripts draw of the code as it is."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Imports a script, which draws into a folder of the test's own."""
    monkeypatch.syspath_prepend(str(FIGURES))
    monkeypatch.setattr(importlib.import_module("svg"), "IMAGES", tmp_path)
    return importlib.import_module


@pytest.mark.parametrize("name", ["batch", "block", "parameter"])
def test_a_figure_is_up_to_date(name: str, figure) -> None:
    drawn = figure(f"travel_{name}").main()
    committed = FIGURES.parent / "images" / f"travel-{name}.svg"
    assert committed.read_text() == drawn, f"run python docs/figures/travel_{name}.py"


def test_what_was_watched_is_a_step_of_fsdp(figure) -> None:
    """Two gathers and one reduction of all but the dropped block, each let go before its gradient leaves."""
    script: ModuleType = figure("travel_block")
    events = script.watch().events
    for name in (script.ROOT, "blocks.0", "blocks.1", "blocks.3"):
        seen = [what for what, whose in events if whose == name]
        assert seen == ["gather", "forward", "release", "gather", "backward", "release", "scatter"]
    assert script.SKIPPED not in {whose for _, whose in events}
