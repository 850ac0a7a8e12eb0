"""A tree of nodes to one validated section; every problem told in our words, never in pydantic's."""

from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from restrain.errors import UserError
from restrain.recipe.checks import Misfit, show
from restrain.recipe.fields import join
from restrain.recipe.nodes import Mapping, Origin
from restrain.recipe.typed import Reader

_LIMITS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "needs at least {min_length}",
    "string_too_short": "needs at least {min_length} character",
    "string_pattern_mismatch": "does not look right (pattern {pattern})",
    "finite_number": "must be finite",
}


def build(root: Mapping, cls: type[BaseModel], title: str, kind: str = "a recipe") -> tuple[Any, dict[str, Origin]]:
    """The validated ``cls`` in ``root`` and the origin of every value; UserError names each problem and its place.

    ``title`` names this very thing in messages, ``kind`` what it is.
    """
    reader = Reader(kind)
    values = reader.section(root, cls, "")
    if reader.problems:
        refuse(reader.problems, title)
    try:
        return cls.model_validate(values), reader.origins
    except ValidationError as error:
        # A number that misses its bound is no "auto" either: that is not a second problem.
        errors = [found for found in error.errors() if found["type"] != "literal_error"] or error.errors()
        refuse([text for found in errors for text in _told(found, values, reader.origins)], title)


def _told(found: Any, values: Any, origins: dict[str, Origin]) -> list[str]:
    """One problem of pydantic's in our words."""
    cause = found.get("ctx", {}).get("error")
    if isinstance(cause, Misfit):
        return [f"{place}{key} {text}" for key, text in cause.problems for place in [_place(key, origins)]]
    key, node = "", values
    for part in found["loc"]:  # has the names of union members in it, which are no keys
        if isinstance(part, int) and isinstance(node, tuple | list):
            key, node = f"{key}[{part}]", node[part]
        elif isinstance(node, dict) and part in node:
            key, node = join(key, str(part)), node[part]
    limits = {name: show(limit) for name, limit in found.get("ctx", {}).items()}
    template = _LIMITS.get(found["type"])
    said = template.format(**limits) if template else str(cause or found["msg"])
    value = "" if isinstance(node, dict | tuple) else f" = {show(node)}"
    return [f"{_place(key, origins)}{key}{value} {said}"]


def _place(key: str, origins: dict[str, Origin]) -> str:
    """``"recipe.yaml:12: "`` of a key, or of the nearest part of it that was written."""
    while key and key not in origins:
        key = key.rpartition("[" if key.endswith("]") else ".")[0]
    return f"{origins[key]}: " if key else ""


def refuse(problems: list[str], title: str, most: int = 5) -> NoReturn:
    """Raise the UserError that tells the first few problems in one paragraph."""
    problems = [_printable(text) for text in dict.fromkeys(problems)]
    told = [text if text.endswith((".", "?")) else text + "." for text in problems[:most]]
    if len(problems) == 1:
        raise UserError(told[0])
    numbered = " ".join(f"({number}) {text}" for number, text in enumerate(told, 1))
    more = f" And {len(problems) - most} more." if len(problems) > most else ""
    raise UserError(f"{len(problems)} problems in {title}: {numbered}{more}")


def _printable(text: str) -> str:
    """A paragraph stays one, whatever a key or a value has in it."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
