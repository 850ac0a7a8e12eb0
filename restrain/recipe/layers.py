"""Layers of a recipe laid over one another: default < base < recipe < site < command line."""

import re
from collections.abc import Sequence

from pydantic import BaseModel

from restrain.errors import UserError
from restrain.recipe.fields import fields_of, is_section, join
from restrain.recipe.nodes import Mapping, Node, Origin, Scalar, read
from restrain.recipe.schema import Recipe

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def _named_sections(cls: type[BaseModel], path: str = "") -> dict[str, str | None]:
    """The sections whose ``name`` chooses their keys, with the name they have by default."""
    found: dict[str, str | None] = {}
    for key, (field, info) in fields_of(cls).items():
        where = join(path, key)
        if field.discriminator:
            found[where] = None if info.is_required() else getattr(info.get_default(), "name", None)
        else:
            for one in field.types:
                if is_section(one):
                    found |= _named_sections(one, where)
    return found


NAMED = _named_sections(Recipe)


def lay(lower: Mapping, upper: Mapping, path: str = "") -> Mapping:
    """``upper`` over ``lower``: sections merge, everything else is replaced, lists too.

    Where ``upper`` gives a section another name than ``lower`` has, the keys of ``lower`` are discarded: they belong
    to the other kind (``optimizer.name=adamw`` leaves no ``momentum`` behind).
    """
    if path in NAMED:
        chosen = name_of(upper)
        if chosen is not None and chosen != (name_of(lower) or NAMED[path]):
            return upper
    entries: dict[str, Node] = dict(lower.entries)
    for key, node in upper.entries.items():
        below = entries.get(key)
        if isinstance(node, Mapping) and isinstance(below, Mapping):
            node = lay(below, node, join(path, key))
        entries[key] = node
    return Mapping(entries, upper.origin if not lower.entries else lower.origin, lower.keys | upper.keys)


def name_of(section: Node | None) -> str | None:
    """The section's ``name`` where it is written."""
    name = section.entries.get("name") if isinstance(section, Mapping) else None
    return name.text if isinstance(name, Scalar) else None


def command_line(overrides: Sequence[str]) -> Mapping:
    """``["optimizer.lr=0.2", ...]`` as one layer; of two values for one key the later counts."""
    top = Mapping({}, Origin("command line"))
    for text in overrides:
        key, equals, value = text.partition("=")
        origin = Origin("command line", text=text)
        if not equals or not _KEY.fullmatch(key):
            raise UserError(f"command line: {text!r} is not key=value, such as optimizer.lr=0.2.")
        if key == "base":
            raise UserError("command line: base is chosen in a recipe file; name the other recipe instead.")
        _put(top, key.split("."), Scalar(value, True, origin), origin)
    return top


def _put(top: Mapping, keys: list[str], value: Scalar, origin: Origin) -> None:
    *sections, last = keys
    node = top
    for key in sections:
        node.keys[key] = origin
        below = node.entries.get(key)
        if isinstance(below, Scalar) and below.text.lstrip().startswith("{"):
            below = read(below.text, below.origin)  # a section that was typed whole, and now one of its keys
            if isinstance(below, Mapping):
                node.entries[key] = below
        if not isinstance(below, Mapping):
            below = node.entries[key] = Mapping({}, origin)
        node = below
    node.keys[last] = origin
    node.entries[last] = value
