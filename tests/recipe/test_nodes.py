"""YAML 1.2: what the reader takes, and what it refuses where other readers guess."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from restrain.errors import UserError
from restrain.recipe.nodes import MAX_DEPTH, Items, Mapping, Origin, Scalar, read, read_file

HERE = Origin("recipe", Path("x.yaml"))


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(text, HERE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scalars_stay_text() -> None:
    node = read("a: 1_000\nb: 0b11\nc: 2001-01-01\nd: off\ne: 'x'\n", HERE)
    assert isinstance(node, Mapping)
    values = {key: (value.text, value.plain) for key, value in node.entries.items() if isinstance(value, Scalar)}
    assert values == {
        "a": ("1_000", True),
        "b": ("0b11", True),
        "c": ("2001-01-01", True),
        "d": ("off", True),
        "e": ("x", False),
    }


def test_lines_are_kept() -> None:
    node = read("# head\na: 1\nb:\n  c: [1,\n      2]\n", HERE)
    assert isinstance(node, Mapping)
    section = node.entries["b"]
    assert isinstance(section, Mapping)
    items = section.entries["c"]
    assert isinstance(items, Items)
    assert [node.keys["b"].line, section.keys["c"].line, items.items[1].origin.line] == [3, 4, 5]


def test_anchors_stand_for_what_they_name() -> None:
    node = read("a: &here [1, 2]\nb: *here\n", HERE)
    assert isinstance(node, Mapping)
    assert node.entries["a"] == node.entries["b"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: the key 'a' stands here again (first on line 1)."),
        ("a:\n\tb: 1\n", "x.yaml:2: a tab; indent and separate with spaces."),
        ("a:\t1\n", "x.yaml:1: a tab; indent and separate with spaces."),
        ("a: '\t'\n", "x.yaml:1: a tab; indent and separate with spaces."),
        (
            "a: !!int 3\n",
            "x.yaml:1: the tag tag:yaml.org,2002:int; types come from the recipe's keys, so leave it out.",
        ),
        ("a: !mine {}\n", "x.yaml:1: the tag !mine; types come from the recipe's keys, so leave it out."),
        ("a: 1\n---\nb: 1\n", "x.yaml:2: a second document begins here; a recipe is one."),
        ("%YAML 1.1\n---\na: 1\n", "x.yaml:2: a % directive; a recipe is plain YAML 1.2."),
        ("<<: {a: 1}\n", "x.yaml:1: merge keys (<<) are not YAML 1.2; use 'base:'."),
        ("? [a]\n: 1\n", "x.yaml:1: a key must be a word."),
        ("a: *b\n", "x.yaml:1: *b stands for nothing written above it."),
        ("a: &b [*b]\n", "x.yaml:1: *b stands for nothing written above it."),
        ("a: [1, 2\nb: 3\n", "x.yaml:2: this is not YAML: expected ',' or ']', but got ':'."),
        ('a: "\\U11111111"\n', "x.yaml: this is not YAML: an escape stands for no character."),
    ],
)
def test_refusals(text: str, told: str) -> None:
    assert refused(text) == told


def test_tabs_in_comments_are_nobodys_business() -> None:
    assert read("# a\tb\na: 1 #\tc\n", HERE) is not None


def test_an_anchor_bomb_is_refused_before_it_expands() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 20)]
    assert "holds more than 10000 values once its anchors are written out" in refused("\n".join(lines))


def test_depth_is_bounded() -> None:
    assert f"nested more than {MAX_DEPTH} deep" in refused("[" * 500 + "]" * 500)


def test_files(tmp_path: Path) -> None:
    for name, content, told in [
        ("empty.yaml", b"# nothing\n", "holds no 'key: value' lines"),
        ("list.yaml", b"- 1\n", "holds no 'key: value' lines"),
        ("latin.yaml", "ä: 1".encode("latin-1"), "is not UTF-8 text"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=told):
            read_file(path, "recipe")
    with pytest.raises(UserError, match="cannot be read"):
        read_file(tmp_path, "recipe")


PIECES = st.sampled_from([*"ab:,[]{}&*!|>'\"%@`#-?\n \\~<", ": ", "- ", "\n  ", "---\n", "&a ", "*a", "0x", "\\u"])


@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)))
@example("a: |\n")
@example('"\\u"')
@example("\ufeff")
@example("\x00")
def test_any_text_is_read_or_refused_in_one_paragraph(text: str) -> None:
    told = ""
    try:
        read(text, HERE)
    except UserError as error:
        told = str(error)
    assert "\n" not in told
