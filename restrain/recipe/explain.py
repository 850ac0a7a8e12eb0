"""One key of a recipe: its value, who set it, what it overrode, what it means and what it may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from restrain.errors import UserError, nearest
from restrain.recipe.checks import show
from restrain.recipe.fields import describe, fields_of, is_section, join, union_tag, words
from restrain.recipe.layers import NAMED, lay, name_of
from restrain.recipe.loading import Resolved
from restrain.recipe.nodes import Items, Mapping, Node, Origin, Scalar, read
from restrain.recipe.writing import flow, leaves, plain


@dataclass(frozen=True)
class Setting:
    """A layer that gives a value for a key. ``fate``: why it does not count; None for the one that does."""

    origin: Origin
    value: str
    fate: str | None


@dataclass(frozen=True)
class Key:
    """What is known of a key. ``section``: the section that has it. ``value`` is plain, as a recipe writes it."""

    name: str
    value: Any
    field: FieldInfo
    takes: str
    section: type[BaseModel]
    settings: tuple[Setting, ...]

    @property
    def is_section(self) -> bool:
        return isinstance(self.value, dict)

    @property
    def shown(self) -> str:
        return flow(self.value)

    @property
    def default(self) -> str:
        if self.field.is_required():
            return "none: it must be given"
        value = self.field.get_default(call_default_factory=True)
        return flow(plain(value)) if isinstance(value, BaseModel) else show_plain(value)


def show_plain(value: Any) -> str:
    """A default as a recipe writes it."""
    if isinstance(value, tuple | list):
        return flow([plain(item) if isinstance(item, BaseModel) else item for item in value])
    return show(value)


def explain(resolved: Resolved, name: str) -> Key:
    """The key ``name`` of a recipe. Raises UserError with the nearest key where there is none."""
    value: Any = resolved.recipe
    section, field, info, path = type(resolved.recipe), None, None, ""
    for part in name.split("."):
        path = join(path, part)
        if value is None or not isinstance(value, BaseModel):
            raise _no_key(resolved, name, path.rpartition(".")[0], value)
        section = type(value)
        found = fields_of(section).get(part)
        if found is None:
            raise _no_key(resolved, name, path.rpartition(".")[0], value)
        field, info = found
        value = next(getattr(value, own) for own, one in section.model_fields.items() if (one.alias or own) == part)
    assert field is not None
    assert info is not None
    takes = describe(field) + "".join(f", {bound}" for bound in _bounds(info))
    return Key(name, _plain_value(value), info, takes, section, tuple(settings(resolved.layers, name)))


def _plain_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return plain(value)
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _no_key(resolved: Resolved, name: str, parent: str, value: Any) -> UserError:
    """Why ``name`` is no key here, and which one may have been meant."""
    last = name.removeprefix(parent).lstrip(".").partition(".")[0]
    here = f"{resolved.name}: " if resolved.name else ""
    if value is None:
        return UserError(f"{here}{name} says nothing: {parent} is null. restrain why {parent} tells what it may be.")
    if not isinstance(value, BaseModel):
        said = "a list, which is one value" if isinstance(value, tuple) else "one value"
        return UserError(f"{here}{name} is not a key: {parent} is {said}. Ask restrain why {parent}.")
    owners = [union_tag(one) for one in _siblings(resolved, parent) if last in fields_of(one)]
    if owners:
        return UserError(
            f"{here}{name} is not there with {parent}.name = {value.name}: it belongs to {parent}.name = "  # type: ignore[attr-defined]
            f"{' or '.join(owners)}. Choose it: restrain why {name} ... {parent}.name={owners[0]}."
        )
    return UserError(f"{here}{name} is not a key.{nearest(name, keys(resolved))} {_listed(value, parent)}")


def _listed(section: BaseModel, parent: str) -> str:
    return f"The keys of {parent or 'a recipe'} are {', '.join(fields_of(type(section)))}."


def _siblings(resolved: Resolved, path: str) -> list[type[BaseModel]]:
    """The sections of the union that ``path`` chooses from by its ``name``; none where it doesn't."""
    if path not in NAMED:
        return []
    cls: Any = type(resolved.recipe)
    field = None
    for part in path.split("."):
        field, _ = fields_of(cls)[part]
        cls = next(one for one in field.types if is_section(one))
    assert field is not None
    return [one for one in field.types if is_section(one)]


def keys(resolved: Resolved) -> list[str]:
    """Every key of a recipe, sections too."""
    found: dict[str, None] = {}
    for leaf in leaves(resolved.recipe):
        parts = leaf.split(".")
        for count in range(1, len(parts) + 1):
            found[".".join(parts[:count])] = None
    return list(found)


def possible_keys(recipe: BaseModel, path: str = "") -> list[str]:
    """Every key that a recipe has or, where a section is null, could have; sections too."""
    found = []
    for own, info in type(recipe).model_fields.items():
        key = join(path, info.alias or own)
        value = getattr(recipe, own)
        found.append(key)
        if isinstance(value, BaseModel):
            found += possible_keys(value, key)
        elif value is None:
            field, _ = fields_of(type(recipe))[info.alias or own]
            found += [join(key, inner) for one in field.types if is_section(one) for inner in fields_of(one)]
    return found


def choices(recipe: BaseModel, key: str) -> list[str]:
    """The words that a key can be: of a choice, true and false, null; none of a number."""
    section: Any = type(recipe)
    value: Any = recipe
    *path, last = key.split(".")
    for part in path:
        field = fields_of(section).get(part)
        sections = [one for one in field[0].types if is_section(one)] if field else []
        if not sections:
            return []
        if last == "name" and len(sections) > 1 and part == path[-1]:
            return [union_tag(one) for one in sections]
        value = getattr(value, part, None)
        section = type(value) if isinstance(value, BaseModel) else sections[0]
    if last not in fields_of(section):
        return []
    types = fields_of(section)[last][0].types
    found = words(types) + (["true", "false"] if bool in types else [])
    return [*found, "null"] if type(None) in types else found


def settings(layers: tuple[Mapping, ...], key: str) -> list[Setting]:
    """The layers that give ``key`` a value, the highest first; a value given with a whole section counts as well."""
    found: list[tuple[Origin, str]] = []
    fates: list[str | None] = []
    merged = Mapping({}, Origin("default"))
    parts = key.split(".")
    for layer in layers:
        for count in range(1, len(parts)):
            section = ".".join(parts[:count])
            node = _get(layer, section)
            chosen = name_of(node)
            if isinstance(node, Scalar):
                fates = [fate or f"{section} was replaced as a whole by {_said(node.origin)}" for fate in fates]
            elif section in NAMED and chosen and chosen != (name_of(_get(merged, section)) or NAMED[section]):
                assert isinstance(node, Mapping)
                by = f"{section}.name = {chosen} ({_said(node.entries['name'].origin)}) discards the section's keys"
                fates = [fate or by for fate in fates]
        node = _get(layer, key)
        if node is not None:
            fates = [fate or f"overridden by {_said(node.origin)}" for fate in fates]
            found.append((node.origin, _written(node)))
            fates.append(None)
        merged = lay(merged, layer)
    both = [Setting(origin, value, fate) for (origin, value), fate in zip(found, fates, strict=True)]
    return both[::-1]


def _get(layer: Node | None, key: str) -> Node | None:
    node: Node | None = layer
    for part in key.split("."):
        if isinstance(node, Scalar) and node.plain and node.text.startswith("{"):
            node = read(node.text, node.origin)  # an override such as schedule={name: cosine}
        node = node.entries.get(part) if isinstance(node, Mapping) else None
    return node


def _written(node: Node) -> str:
    """A node as it was written, on one line."""
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Items):
        return "[" + ", ".join(_written(item) for item in node.items) + "]"
    return "{" + ", ".join(f"{key}: {_written(one)}" for key, one in node.entries.items()) + "}"


def _said(origin: Origin) -> str:
    return f"{origin}: {origin.text}" if origin.text else str(origin)


def _bounds(info: FieldInfo) -> Iterator[str]:
    """The limits of a number or a text, in words."""
    seen = set()
    for mark in _marks(info.annotation, list(info.metadata)):
        for name, told in _LIMITS.items():
            limit = getattr(mark, name, None)
            if limit is not None and (name, limit) not in seen:
                seen.add((name, limit))
                yield told.format(show(limit) if not isinstance(limit, str) else limit)


_LIMITS = {
    "gt": "more than {}",
    "ge": "at least {}",
    "lt": "less than {}",
    "le": "at most {}",
    "min_length": "at least {} long",
    "pattern": "such as the pattern {}",
}


def _marks(annotation: Any, marks: list[Any]) -> Iterator[Any]:
    for mark in marks:
        yield mark
        if isinstance(mark, FieldInfo):
            yield from mark.metadata
    if get_origin(annotation) is Annotated:
        yield from _marks(get_args(annotation)[0], list(annotation.__metadata__))
    elif get_origin(annotation) is not None and not is_section(annotation):
        for inner in get_args(annotation):
            if not isinstance(inner, str | int | bool) and inner is not Ellipsis:
                yield from _marks(inner, [])
