"""What README and docs say is so: links, named tests, commands, the generated page, the walk with own data."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from restrain.cli.main import run
from restrain.recipe import load
from tests import worlds

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = ["length=2st", "batch.global=8", "batch.group=4", "model.name=cifar_resnet20"]


def name(page: Path) -> str:
    return page.name


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a page that are marked as ``kind``."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The ``restrain`` command lines of a page's console blocks, as argument lists without ``restrain``."""
    lines = [line.removesuffix("&") for block in blocks(page, "console") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"(torchrun .*)?\brestrain\b", line)]
    return [[w for w in line[line.index("restrain") + 1 :] if w != "--"] for line in words]


def test_the_generated_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert reference.PAGE.read_text() == reference.page(), "the schema has changed: run python docs/reference.py"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_tests_exist(page: Path) -> None:
    for file, test in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text()):
        assert (ROOT / file).is_file(), file
        if test:
            assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"({page.name})" in index


@pytest.fixture
def beside_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is one in which the README's own recipe lies."""
    (recipe,) = blocks(ROOT / "README.md", "yaml")
    (tmp_path / "pictures.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("beside_pictures")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_shown_recipes_are_shown(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in commands(page):
        if argv[0] == "show":
            assert run(argv) == 0, (argv, capsys.readouterr().err)


@pytest.mark.usefixtures("beside_pictures")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_trained_recipes_are_legal(page: Path) -> None:
    """Each ``restrain train`` of a page names a recipe that exists, with overrides that it takes."""
    for argv in commands(page):
        if argv[0] == "train":
            load(argv[1], [word for word in argv[2:] if re.match(r"[a-z_.]+=", word)])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_quoted_errors_are_what_is_said(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page, "text"):
        for line, said in re.findall(r"^\$ restrain (.*)\n(error: .*)$", block, re.MULTILINE):
            assert run(shlex.split(line)) == 2
            assert capsys.readouterr().err.strip() == said


def test_the_audit_of_the_ledger_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert worlds.train(tmp_path / "runs" / "one", ["length=3st", "evaluate.every=3st"]).codes == [0]
    monkeypatch.chdir(tmp_path)
    (program,) = blocks(ROOT / "docs" / "ledger.md", "python")
    exec(compile(program, "docs/ledger.md", "exec"), {})
    assert "the samples of its plan" in capsys.readouterr().out


@pytest.mark.usefixtures("beside_pictures")
def test_the_readmes_own_data(tmp_path: Path) -> None:
    """Its pictures, its recipe and its shards, trained for two steps."""
    for number, program in enumerate(blocks(ROOT / "README.md", "python")):
        exec(compile(program, f"README.md, program {number + 1}", "exec"), {})
    assert len(list(tmp_path.glob("pictures/*/*/*.png"))) == 1797
    mine = str(tmp_path / "pictures.yaml")
    ended = worlds.train(tmp_path / "runs" / "mine", [*TINY, f"data.root={tmp_path / 'pictures'}"], recipe=mine)
    assert ended.codes == [0], ended.text
    shards = ["data.name=webdataset", f"data.root={tmp_path / 'shards'}"]
    ended = worlds.train(tmp_path / "runs" / "shards", [*TINY, *shards], recipe=mine)
    assert ended.codes == [0], ended.text
    assert "1,437 training samples, 360 evaluated" in ended.text
