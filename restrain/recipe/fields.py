"""What the keys of a section take, read off the schema's annotations and put into words."""

from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from restrain.recipe.durations import Duration, Units


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
    """The keys of a section as a recipe spells them, ``name`` first."""
    names = sorted(section.model_fields, key=lambda name: name != "name")
    infos = {name: section.model_fields[name] for name in names}
    return {
        info.alias or name: (field_of(info.annotation, info.metadata, info.discriminator), info)
        for name, info in infos.items()
    }


def union_tag(section: type[BaseModel]) -> str:
    """The ``name`` that chooses this section out of its union."""
    return get_args(section.model_fields["name"].annotation)[0]


def is_section(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, BaseModel)


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def words(types: tuple[Any, ...]) -> list[str]:
    return [word for one in types if get_origin(one) is Literal for word in get_args(one)]


def describe(field: Field) -> str:
    """What a key takes, in words: ``"auto, an integer or null"``."""
    choices = words(field.types)
    parts = [f"one of {', '.join(choices)}"] if len(choices) > 1 else choices
    for one in field.types:
        if one is Duration:
            parts.append(f"a duration in {field.units.describe()}" if field.units else "a duration")
        elif is_section(one):
            continue
        elif get_origin(one) is tuple:
            parts.append(_describe_list(get_args(one)))
        elif get_origin(one) is dict:
            parts.append("lines of its own, KEY: VALUE")
        elif one is bool:
            parts += ["true", "false"]
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


_NAMES = {int: "an integer", float: "a number", str: "text"}


def _describe_list(inner: tuple[Any, ...]) -> str:
    if len(inner) == 2 and inner[1] is Ellipsis:
        field = field_of(inner[0])
        if field.discriminator:
            return f"a list such as [{{name: {union_tag(field.types[0])}}}]"
        return f"a list, each {describe(field)}"
    return f"a list of {len(inner)}: " + ", ".join(describe(field_of(one)) for one in inner)
