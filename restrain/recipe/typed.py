"""Nodes to typed values: the type of the recipe's field decides what a scalar means, never its looks."""

import re
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from restrain.errors import UserError, nearest
from restrain.recipe.checks import Misfit
from restrain.recipe.durations import Duration, Units
from restrain.recipe.nodes import Items, Mapping, Node, Origin, Scalar, read

# The core schema of YAML 1.2.2, section 10.3.2.
NULL = ("", "~", "null", "Null", "NULL")
TRUE = ("true", "True", "TRUE")
FALSE = ("false", "False", "FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+")
OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

UNREAD = object()
"""What stands in for a value that could not be read; its problem is on the list."""


class Field(NamedTuple):
    """What a key takes, flattened out of its annotation."""

    types: tuple[Any, ...]
    units: Units | None
    discriminator: str | None


def field_of(annotation: Any, metadata: list[Any] | None = None, discriminator: Any = None) -> Field:
    """Unwrap ``Annotated`` and unions into the list of types a value may have."""
    types: list[Any] = []
    units: Units | None = None
    marks = list(metadata or [])
    pending = [annotation]
    while pending:
        one = pending.pop(0)
        if get_origin(one) is Annotated:
            pending.insert(0, get_args(one)[0])
            marks += one.__metadata__
        elif get_origin(one) is Union or type(one).__name__ == "UnionType":
            pending = [*get_args(one), *pending]
        else:
            types.append(type(None) if one is None else one)
    for mark in marks:
        units = mark if isinstance(mark, Units) else units
        if isinstance(mark, FieldInfo) and mark.discriminator:
            discriminator = mark.discriminator
    return Field(tuple(types), units, discriminator if isinstance(discriminator, str) else None)


def fields_of(section: type[BaseModel]) -> dict[str, tuple[Field, FieldInfo]]:
    """The keys of a section as a recipe spells them."""
    return {
        info.alias or name: (field_of(info.annotation, info.metadata, info.discriminator), info)
        for name, info in section.model_fields.items()
    }


def union_tag(section: type[BaseModel]) -> str:
    """The ``name`` that chooses this section out of its union."""
    return get_args(section.model_fields["name"].annotation)[0]


def is_section(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, BaseModel)


class Reader:
    """Reads a tree of nodes into plain values for pydantic, noting where each stands and what is wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.origins: dict[str, Origin] = {}

    def problem(self, origin: Origin | None, text: str) -> Any:
        self.problems.append(f"{origin}: {text}" if origin else text)
        return UNREAD

    def section(self, node: Mapping, cls: type[BaseModel], path: str) -> dict[str, Any]:
        fields = fields_of(cls)
        values = {}
        for key, child in node.entries.items():
            where = join(path, key)
            if key not in fields:
                self.unknown(node, cls, path, key)
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

    def unknown(self, node: Mapping, cls: type[BaseModel], path: str, key: str) -> None:
        fields = fields_of(cls)
        kind = f" with name = {union_tag(cls)}" if path and is_union_member(cls) else ""
        of = f"{path}{kind}" if path else "a recipe"
        guess = nearest(key, fields)
        self.problem(
            node.keys.get(key, node.origin),
            f"{join(path, key)} is not a key.{guess} The keys of {of} are {', '.join(fields)}",
        )

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
            return {"name": name, **self.section(with_name(node, name), tags[name], path)}
        name = chosen.text if isinstance(chosen, Scalar) else ""
        if name not in tags:
            shown = repr(name) if isinstance(chosen, Scalar) else "what stands there"
            return self.problem(
                chosen.origin, f"{join(path, 'name')}: {shown} is not one of {', '.join(tags)}.{nearest(name, tags)}"
            )
        return self.section(node, tags[name], path)

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
        words = _words(types)
        if text in words:
            return text
        guess = nearest(text, words)
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


def _words(types: tuple[Any, ...]) -> list[str]:
    return [word for one in types if get_origin(one) is Literal for word in get_args(one)]


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


def is_union_member(cls: type[BaseModel]) -> bool:
    info = cls.model_fields.get("name")
    return info is not None and get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def describe(field: Field) -> str:
    """What a key takes, in words: ``"auto, an integer or null"``."""
    words = _words(field.types)
    parts = [f"one of {', '.join(words)}"] if len(words) > 1 else list(words)
    for one in field.types:
        if one is Duration:
            parts.append(f"a duration in {field.units.describe()}" if field.units else "a duration")
        elif is_section(one):
            continue
        elif get_origin(one) is tuple:
            parts.append(_describe_list(get_args(one)))
        elif one in _NAMES:
            parts.append(_NAMES[one])
    sections = [one for one in field.types if is_section(one)]
    if sections and field.discriminator:
        parts.append(f"a section with a name ({', '.join(union_tag(one) for one in sections)})")
    elif sections:
        parts.append(f"a section with the keys {', '.join(fields_of(sections[0]))}")
    if type(None) in field.types:
        parts.append("null")
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1]


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def _describe_list(inner: tuple[Any, ...]) -> str:
    if len(inner) == 2 and inner[1] is Ellipsis:
        field = field_of(inner[0])
        if field.discriminator:
            return f"a list such as [{{name: {union_tag(field.types[0])}}}]"
        return f"a list, each {describe(field)}"
    return f"a list of {len(inner)}: " + ", ".join(describe(field_of(one)) for one in inner)


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


def build(root: Mapping, cls: type[BaseModel], title: str) -> tuple[Any, dict[str, Origin]]:
    """The validated ``cls`` in ``root`` and the origin of every value; UserError names each problem and its place."""
    reader = Reader()
    values = reader.section(root, cls, "")
    if reader.problems:
        refuse(reader.problems, title)
    try:
        return cls.model_validate(values), reader.origins
    except ValidationError as error:
        refuse([text for found in error.errors() for text in _told(found, values, reader.origins)], title)


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
    template = _LIMITS.get(found["type"])
    said = template.format(**found["ctx"]) if template else str(cause or found["msg"])
    value = "" if isinstance(node, dict | tuple) else f" = {node}"
    return [f"{_place(key, origins)}{key}{value} {said}"]


def _place(key: str, origins: dict[str, Origin]) -> str:
    """``"recipe.yaml:12: "`` of a key, or of the nearest part of it that was written."""
    while key and key not in origins:
        key = key.rpartition("[" if key.endswith("]") else ".")[0]
    return f"{origins[key]}: " if key else ""


def refuse(problems: list[str], title: str, most: int = 5) -> NoReturn:
    """Raise the UserError that tells the first few problems in one paragraph."""
    problems = list(dict.fromkeys(problems))
    told = [text if text.endswith((".", "?")) else text + "." for text in problems[:most]]
    if len(problems) == 1:
        raise UserError(told[0])
    numbered = " ".join(f"({number}) {text}" for number, text in enumerate(told, 1))
    more = f" And {len(problems) - most} more." if len(problems) > most else ""
    raise UserError(f"{len(problems)} problems in {title}: {numbered}{more}")
