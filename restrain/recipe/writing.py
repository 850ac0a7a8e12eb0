"""A recipe as YAML that reads back as the same recipe, and as a flat list of keys."""

import re
from typing import Any, Final

from pydantic import BaseModel

from restrain.recipe.durations import Duration
from restrain.recipe.fields import join

WIDTH = 120
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()
"""Stands for the value of a key that one of two recipes does not have."""


def to_yaml(recipe: BaseModel) -> str:
    """Every key of ``recipe``, defaults too, as YAML 1.2 that ``load`` takes."""
    lines: list[str] = []
    for key, value in plain(recipe).items():
        _emit(key, value, 0, lines)
    return "\n".join(lines) + "\n"


def plain(section: BaseModel) -> dict[str, Any]:
    """A section as dicts, lists and scalars, its keys spelt and ordered as in a recipe; durations as text."""
    fields = type(section).model_fields
    names = sorted(fields, key=lambda name: name != "name")  # what chooses the other keys stands first
    return {fields[name].alias or name: _plain(getattr(section, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return plain(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Duration) else value


def leaves(recipe: BaseModel) -> dict[str, Any]:
    """``{"optimizer.lr": 0.1, ...}``: every key with its plain value; a list is one value."""
    found: dict[str, Any] = {}

    def walk(section: dict[str, Any], path: str) -> None:
        for key, value in section.items():
            if isinstance(value, dict):
                walk(value, join(path, key))
            else:
                found[join(path, key)] = value

    walk(plain(recipe), "")
    return found


def differences(a: BaseModel, b: BaseModel) -> list[tuple[str, Any, Any]]:
    """The keys in which two recipes differ, with the value in each (``ABSENT`` where one has no such key).

    A key that only one of them has, and that says nothing there (null), is no difference.
    """
    in_a, in_b = leaves(a), leaves(b)
    keys = [*in_a, *(key for key in in_b if key not in in_a)]
    pairs = [(key, in_a.get(key, ABSENT), in_b.get(key, ABSENT)) for key in keys]
    return [
        (key, one, other)
        for key, one, other in pairs
        if (one != other or type(one) is not type(other)) and not (ABSENT in (one, other) and None in (one, other))
    ]


def _emit(key: str, value: Any, depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    line = f"{indent}{key}: {flow(value)}"
    if not isinstance(value, dict | list) or not value or len(line) <= WIDTH:
        lines.append(line)
        return
    lines.append(f"{indent}{key}:")
    if isinstance(value, dict):
        for inner, item in value.items():
            _emit(inner, item, depth + 1, lines)
    else:
        lines.extend(f"{indent}  - {flow(item)}" for item in value)


def flow(value: Any) -> str:
    """A plain value on one line, as a recipe writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        # YAML 1.1 readers take 1e-05 for text: a point makes every reader see a number.
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return _text(value) if isinstance(value, str) else str(value)


def _text(value: str) -> str:
    if (_WORD.fullmatch(value) and value.lower() not in _RESERVED) or _is_duration(value):
        return value
    return '"' + "".join(_escaped(character) for character in value) + '"'


def _is_duration(value: str) -> bool:
    try:
        Duration.parse(value)
    except ValueError:
        return False
    return True


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
