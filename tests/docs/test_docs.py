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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
START = ROOT / "docs" / "start.md"
MIGRATION = sorted((ROOT / "docs" / "migrate").glob("*.md"))
TINY = ["length=2st", "batch.global=8", "batch.group=4", "model.name=cifar_resnet20"]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a page that are marked as ``kind``."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The ``restrain`` command lines of a page's console blocks, as argument lists without ``restrain``."""
    lines = [line.removesuffix("&") for block in blocks(page, "console") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"(torchrun .*)?\brestrain\b", line)]
    return [[w for w in line[line.index("restrain") + 1 :] if w != "--"] for line in words]


@pytest.mark.parametrize("generator", ["reference", "results"])
def test_a_generated_page_is_up_to_date(generator: str) -> None:
    spec = importlib.util.spec_from_file_location(generator, ROOT / "docs" / f"{generator}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), f"what it is made of has changed: run python docs/{generator}.py"


@pytest.mark.parametrize("page", MIGRATION, ids=name)
def test_keys_of_a_migration_page_exist(page: Path) -> None:
    """Every ``key=value`` of the tables is a key that some recipe has."""
    known = every_key()
    rows = re.findall(r"^\| `-.*$", page.read_text(), re.MULTILINE)
    spans = [span for row in rows for span in re.findall(r"`([^`]+)`", row.split("|")[2])]
    keys = {key for span in spans for key in re.findall(r"(?:^|\s)([a-z_]+(?:\.[a-z_]+)*)=", span)}
    assert len(keys) > 25
    assert keys <= known, keys - known


def every_key() -> set[str]:
    """Every dotted key of the schema, those of all kinds of a section together."""
    text = (ROOT / "docs" / "recipe-reference.md").read_text()
    keys = set(re.findall(r"^\| `([a-z_]+(?:\.[a-z_]+)*)`", text, re.MULTILINE))
    sections = {key.rpartition(".")[0] for key in keys} - {""}
    named = {f"{section}.name" for section in sections}
    return keys | sections | named


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


@pytest.fixture
def beside_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is one in which the recipe of the first steps lies."""
    (recipe,) = blocks(START, "yaml")
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
def test_the_first_steps(tmp_path: Path) -> None:
    """Their pictures, their recipe and their shards, trained for two steps."""
    for number, program in enumerate(blocks(START, "python")):
        exec(compile(program, f"docs/start.md, program {number + 1}", "exec"), {})
    assert len(list(tmp_path.glob("pictures/*/*/*.png"))) == 1797
    mine = str(tmp_path / "pictures.yaml")
    ended = worlds.train(tmp_path / "runs" / "mine", [*TINY, f"data.root={tmp_path / 'pictures'}"], recipe=mine)
    assert ended.codes == [0], ended.text
    packing = next(argv for argv in commands(START) if argv[:2] == ["data", "pack"])
    assert run([*packing[:2], str(tmp_path / "pictures"), str(tmp_path / "shards")]) == 0
    shards = ["data.name=webdataset", f"data.root={tmp_path / 'shards'}"]
    ended = worlds.train(tmp_path / "runs" / "shards", [*TINY, *shards], recipe=mine)
    assert ended.codes == [0], ended.text
    assert "1,437 training samples, 360 evaluated" in ended.text
