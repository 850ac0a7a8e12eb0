"""Nodes to typed values: the type of the recipe's field decides what a scalar means, never its looks."""

import re
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from restrain.errors import UserError, nearest
from restrain.recipe.durations import Duration
from restrain.recipe.fields import Field, describe, field_of, fields_of, is_section, join, union_tag, words
from restrain.recipe.nodes import Items, Mapping, Node, Origin, Scalar, read

# The core schema of YAML 1.2.2, section 10.3.2.
NULL = ("", "~", "null", "Null", "NULL")
TRUE = ("true", "True", "TRUE")
FALSE = ("false", "False", "FALSE")
INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
OCTAL_OR_HEX = re.compile(r"0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

UNREAD = object()
"""What stands in for a value that could not be read; its problem is on the list."""


class Reader:
    """Reads a tree of nodes into plain values for pydantic, noting where each stands and what is wrong."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.problems: list[str] = []
        self.origins: dict[str, Origin] = {}

    def problem(self, origin: Origin | None, text: str) -> Any:
        self.problems.append(f"{origin}: {text}" if origin else text)
        return UNREAD

    def section(self, node: Mapping, cls: type[BaseModel], path: str, union: Sequence[Any] = ()) -> dict[str, Any]:
        fields = fields_of(cls)
        values = {}
        for key, child in node.entries.items():
            where = join(path, key)
            if key not in fields:
                self.unknown(node, cls, path, key, union)
                continue
            field, info = fields[key]
            self.origins[where] = child.origin
            default = info.get_default() if not info.is_required() else None
            value = self.value(child, field, where, default)
            if value is not UNREAD:
                values[key] = value
        for key, (_, info) in fields.items():
            if info.is_required() and key not in node.entries:
                self.problem(node.origin, f"{join(path, key)} is missing: {lower_first(info.description or '')}")
        return values

    def unknown(self, node: Mapping, cls: type[BaseModel], path: str, key: str, union: Sequence[Any]) -> None:
        fields = fields_of(cls)
        origin = node.keys.get(key, node.origin)
        first, colon, rest = key.partition(":")
        if colon and first in fields:  # which YAML reads as one word, a key without a value
            self.problem(
                origin,
                f"{path or self.kind} has the word {key!r}: a space belongs after the colon, {{{first}: {rest}}}",
            )
            return
        where = origin.text.partition("=")[0] if origin.text else join(path, key)
        owners = [union_tag(one) for one in union if one is not cls and key in fields_of(one)]
        if owners:
            listed = " or ".join([", ".join(owners[:-1]), owners[-1]] if owners[1:] else owners)
            chosen, others = union_tag(cls), f"{path}.name = {listed}"
            self.problem(origin, f"{where} does nothing with {path}.name = {chosen}: it belongs to {others}")
            return
        kind = f" with {path}.name = {union_tag(cls)}" if len(union) > 1 else ""
        of = f"{path}{kind}" if path else self.kind
        self.problem(origin, f"{where} is not a key.{nearest(key, fields)} The keys of {of} are {', '.join(fields)}")

    def value(self, node: Node, field: Field, path: str, default: Any = None) -> Any:
        if isinstance(node, Scalar):
            node = reread(node, field)
        if isinstance(node, Mapping):
            return self.mapping(node, field, path, default)
        if isinstance(node, Items):
            return self.items(node, field, path)
        return self.scalar(node, field, path)

    def mapping(self, node: Mapping, field: Field, path: str, default: Any) -> Any:
        sections = [one for one in field.types if is_section(one)]
        if any(get_origin(one) is dict for one in field.types):
            text = field_of(str)
            return {key: self.value(child, text, join(path, key)) for key, child in node.entries.items()}
        if not sections:
            return self.problem(node.origin, f"{path} holds keys of its own, but it takes {describe(field)}")
        if field.discriminator is None:
            return self.section(node, sections[0], path)
        tags = {union_tag(one): one for one in sections}
        chosen = node.entries.get("name")
        if chosen is None:
            name = getattr(default, "name", None)
            if name is None:
                return self.problem(node.origin, f"{join(path, 'name')} is missing: one of {', '.join(tags)}")
            return self.section(with_name(node, name), tags[name], path, sections)
        name = chosen.text if isinstance(chosen, Scalar) else ""
        if name not in tags:
            shown = repr(name) if isinstance(chosen, Scalar) else "what stands there"
            return self.problem(
                chosen.origin, f"{join(path, 'name')}: {shown} is not one of {', '.join(tags)}.{nearest(name, tags)}"
            )
        return self.section(node, tags[name], path, sections)

    def items(self, node: Items, field: Field, path: str) -> Any:
        lists = [one for one in field.types if get_origin(one) is tuple]
        if not lists:
            return self.problem(node.origin, f"{path} is a list, but it takes {describe(field)}")
        inner = get_args(lists[0])
        repeated = len(inner) == 2 and inner[1] is Ellipsis
        if not repeated and len(inner) != len(node.items):
            return self.problem(node.origin, f"{path} has {len(node.items)} entries, but it takes {describe(field)}")
        values = []
        for number, item in enumerate(node.items):
            where = f"{path}[{number}]"
            self.origins[where] = item.origin
            values.append(self.value(item, field_of(inner[0] if repeated else inner[number]), where))
        return UNREAD if any(value is UNREAD for value in values) else tuple(values)

    def scalar(self, node: Scalar, field: Field, path: str) -> Any:
        text, types = node.text, field.types
        if node.plain and text in NULL and type(None) in types:
            return None
        value = _plain(text, types) if node.plain else UNREAD
        if value is not UNREAD:
            return value
        if Duration in types:
            try:
                return Duration.parse(text)
            except ValueError as error:
                return self.problem(node.origin, f"{path}: {text!r} {error}; it takes {describe(field)}")
        if str in types and not (node.plain and text in NULL):
            return text
        choices = words(types)
        if text in choices:
            return text
        tags = [union_tag(one) for one in types if is_section(one)] if field.discriminator else []
        if text in tags:
            return self.problem(node.origin, f"{path}: {text!r} is a name; write {path}.name={text}")
        guess = nearest(text, choices)
        return self.problem(node.origin, f"{path}: {shown(node)} is not {describe(field)}.{guess}")


def _plain(text: str, types: tuple[Any, ...]) -> Any:
    if bool in types and text in TRUE + FALSE:
        return text in TRUE
    if int in types:
        if INTEGER.fullmatch(text):
            return int(text)
        if OCTAL_OR_HEX.fullmatch(text):
            return int(text, 0)
    if float in types and FLOAT.fullmatch(text):
        return float(text)
    return UNREAD


def shown(node: Scalar) -> str:
    if node.plain and node.text in NULL:
        return "null"
    return repr(node.text)


def reread(node: Scalar, field: Field) -> Node:
    """An override such as ``at=[30ep,60ep]`` or ``name="null"``: YAML in flow form where the field takes it."""
    if node.origin.text is None or not node.plain or node.text[:1] not in ("[", "{", '"', "'"):
        return node
    try:
        found = read(node.text, node.origin)
    except UserError:
        return node
    takes_list = any(get_origin(one) is tuple for one in field.types)
    takes_section = any(is_section(one) for one in field.types)
    if isinstance(found, Items) and not takes_list and str in field.types:
        return node
    if isinstance(found, Mapping) and not takes_section and str in field.types:
        return node
    return found or node


def with_name(node: Mapping, name: str) -> Mapping:
    entries = {"name": Scalar(name, True, Origin("default")), **node.entries}
    return Mapping(entries, node.origin, node.keys, node.size)


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
