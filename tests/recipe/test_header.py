"""The comment at the top of a recipe: what ``restrain recipes`` reads of it."""

from pathlib import Path

import pytest

from restrain.recipe import available, find, load
from restrain.recipe.header import EDITOR_LINE, UNMEASURED, Header, read_header

COMMENT = """\
# yaml-language-server: $schema=./recipe.schema.json
# ResNet-50 on ImageNet-1k, 90 epochs.   He et al. 2015 (arXiv:1512.03385).
# restrain train imagenet_resnet50 data.root=/data/imagenet
# Expected: 76.13 % top-1 (eval/top1, tolerance 0.3), centre crop.   Hardware: 8 x A100; about 4 h, with 2.5 % to spare.
# Unlike the paper: nothing.
task: classify
# Expected: not this one.
"""


def test_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(COMMENT)
    assert read_header(file) == Header(
        title="ResNet-50 on ImageNet-1k, 90 epochs",
        follows="He et al. 2015 (arXiv:1512.03385)",
        command="restrain train imagenet_resnet50 data.root=/data/imagenet",
        expected="76.13 % top-1 (eval/top1, tolerance 0.3), centre crop.",
        hardware="8 x A100",
        time="about 4 h, with 2.5 % to spare",
    )


def test_an_own_recipe_needs_no_header(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text in ("base: digits_resnet20\n", ""):
        file.write_text(text)
        assert read_header(file) == Header("", None, None, None, None, None)


@pytest.mark.parametrize("name", available())
def test_every_shipped_recipe_has_one(name: str) -> None:
    path = find(name)
    lines = path.read_text(encoding="utf-8").splitlines()
    header = read_header(path)
    assert lines[0] == EDITOR_LINE
    assert lines[1].startswith(f"# {header.title}")
    assert header.title
    assert header.command is not None
    assert header.command.split()[:3] == ["restrain", "train", name]
    assert header.expected
    if header.hardware is None:
        assert f"Hardware and time: {UNMEASURED}." in path.read_text(encoding="utf-8")
    else:
        assert header.time


@pytest.mark.parametrize("name", available())
def test_its_command_is_legal(name: str) -> None:
    command = read_header(find(name)).command
    assert command is not None
    load(name, command.split()[3:])
