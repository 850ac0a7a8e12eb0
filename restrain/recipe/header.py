"""The comment at the top of a shipped recipe: prose for a person, with four places that a program reads.

::

    # yaml-language-server: $schema=./recipe.schema.json
    # ResNet-50 on ImageNet-1k, 90 epochs.   He et al. 2015 (arXiv:1512.03385).
    # restrain train imagenet_resnet50 data.root=/data/imagenet
    # Expected: 76.13 % top-1 (eval/top1, tolerance 0.3).   Hardware: 8 x A100; about 4 h, not measured by this project.
    # Anything else: what differs from the source, and why.

The first line is the editor's, the second the title and, after three spaces, whom it follows. ``Hardware: WHAT; TIME.``
stands anywhere in the comment; where nobody has measured, it reads ``Hardware and time: not measured yet.``
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from restrain.errors import UserError
from restrain.recipe.nodes import relative

SCHEMA = "./recipe.schema.json"
EDITOR_LINE = f"# yaml-language-server: $schema={SCHEMA}"
UNMEASURED = "not measured yet"
_HARDWARE = re.compile(r"\bHardware: (?P<what>[^;]+); (?:time )?(?P<time>.+?)\.(?:   |$)", re.MULTILINE)


@dataclass(frozen=True)
class Header:
    """What the comment says; ``None`` where it doesn't."""

    title: str
    follows: str | None
    command: str | None
    expected: str | None
    hardware: str | None
    time: str | None


def read_header(path: Path) -> Header:
    """The header of a recipe file, one of your own as well, which need not have any of it.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{relative(path)}: cannot be read as a recipe ({error}).") from None
    comment = re.match(r"(?:#.*(?:\n|\Z))*", text)
    assert comment is not None
    lines = [line.removeprefix("#").strip() for line in comment[0].splitlines()]
    lines = [line for line in lines if not line.startswith("yaml-language-server:")]
    title, _, follows = (lines[0] if lines else "").partition("   ")
    expected = next((line.removeprefix("Expected: ") for line in lines if line.startswith("Expected: ")), None)
    cost = _HARDWARE.search("\n".join(lines))
    return Header(
        title=title.strip().removesuffix("."),
        follows=follows.strip().removesuffix(".") or None,
        command=next((line for line in lines if line.startswith("restrain train ")), None),
        expected=expected.partition("   ")[0] if expected else None,
        hardware=cost["what"] if cost else None,
        time=cost["time"] if cost else None,
    )
