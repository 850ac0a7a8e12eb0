from pathlib import Path

import pytest

MINIMAL = """\
model: {name: resnet18, classes: 5}
data: {name: folder}
resolution: {train: 64}
batch: {global: 64, group: 16}
length: 2ep
optimizer: {name: sgd, lr: 0.1}
schedule: {name: cosine}
"""


@pytest.fixture(autouse=True)
def _no_site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes mean the same on every machine that runs the tests."""
    monkeypatch.delenv("RESTRAIN_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes ``name.yaml`` into a fresh working directory; returns the name as a user would type it."""
    monkeypatch.chdir(tmp_path)

    def _write(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return _write


@pytest.fixture
def minimal(write) -> str:
    """A file with the smallest recipe for a folder of images."""
    return write(MINIMAL)
