from pathlib import Path

import pytest

from tests import worlds
from tests.bad_input.harness import RUN, Place


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after step 6 of 8."""
    run = tmp_path_factory.mktemp("template") / "run"
    ended = worlds.train(run, RUN, 1, {0: [("at_step", {"step": 5, "signal": "SIGTERM"})]})
    assert ended.codes == [75], ended.text
    assert len(worlds.ledger(run)) == 6
    return run


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never stopped."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert worlds.train(run, RUN).codes == [0]
    return run


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Place:
    return Place(tmp_path, template)
