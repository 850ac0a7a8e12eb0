"""Writes what is made of the recipe's schema: docs/recipe-reference.md, every key with what it takes, its default and
its meaning, and recipes/recipe.schema.json, the same for editors.

``python docs/reference.py``; tests/docs/test_docs.py and tests/recipe/test_json_schema.py hold both to the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from restrain.recipe import Recipe, is_placement, json_schema
from restrain.recipe.checks import show
from restrain.recipe.fields import Field, describe, field_of, fields_of, is_section, join, union_tag

PAGE = Path(__file__).with_name("recipe-reference.md")
HEAD = """# Every key of a recipe

Written from the schema by `python docs/reference.py`; do not edit. How a recipe is read: [recipes](recipes.md).

Keys marked *placement* say where a run happens, not what it is: they may change when it goes on
([run folder](run-folder.md)). "required" means that some layer must give it. `restrain show NAME` prints a recipe with
all of them.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(f"\n{part}" for part in ["## The recipe\n\n" + _about(Recipe, ""), *_inner(Recipe, "")])


def _inner(cls: Any, path: str) -> Iterator[str]:
    """The parts about the sections that are inside of ``cls``, in the order of its keys."""
    for key, (field, _) in fields_of(cls).items():
        where = join(path, key)
        lists = [field_of(get_args(one)[0]) for one in field.types if get_origin(one) is tuple]
        if lists and lists[0].discriminator:
            field, where = lists[0], f"{where}[]"
        found = [one for one in field.types if is_section(one)]
        if field.discriminator:
            yield from _union(found, where)
        else:
            for section in found:
                yield f"## {where}\n\n" + _about(section, where)
                yield from _inner(section, where)


def _union(sections: list[Any], path: str) -> Iterator[str]:
    """A section whose ``name`` chooses its keys: what all have in common, then what each has besides."""
    rows = [_rows(section, path) for section in sections]
    common = [row for row in rows[0] if all(row in other for other in rows)]
    names = ", ".join(f"`{union_tag(section)}`" for section in sections)
    yield f"## {path}\n\nIts `name` chooses the other keys: {names}.\n" + ("\n" + _table(common) if common else "")
    for section, own in zip(sections, rows, strict=True):
        rest = [row for row in own if row not in common]
        body = _table(rest) if rest else "No keys besides.\n"
        yield f"### {path}, name: {union_tag(section)}\n\n{_doc(section)}\n\n{body}"
    seen = set()
    for section in sections:
        for part in _inner(section, path):
            if part not in seen:
                seen.add(part)
                yield part


def _about(section: Any, path: str) -> str:
    return f"{_doc(section)}\n\n{_table(_rows(section, path))}"


def _doc(section: Any) -> str:
    return " ".join((section.__doc__ or "").split())


def _table(rows: list[str]) -> str:
    return "| key | takes | default | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _rows(section: Any, path: str) -> list[str]:
    name = section.model_fields.get("name")
    tag = name is not None and get_origin(name.annotation) is Literal and len(get_args(name.annotation)) == 1
    return [_row(key, f, info, path) for key, (f, info) in fields_of(section).items() if not (tag and key == "name")]


def _row(key: str, field: Field, info: FieldInfo, path: str) -> str:
    where = join(path, key)
    default = "required" if info.is_required() else _default(info.get_default())
    meaning = (info.description or "").removesuffix(" Placement.")
    if is_placement(where):
        meaning += " *Placement.*"
    cells = (f"`{where}`", describe(field), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(value: Any) -> str:
    if hasattr(value, "model_fields_set"):
        name = getattr(value, "name", None)
        return f"`name: {name}`" if isinstance(name, str) else "its keys' defaults"
    if isinstance(value, tuple) and any(hasattr(item, "model_fields_set") for item in value):
        return ", ".join(f"`{item.name}`" for item in value)
    return f"`{show(value)}`" if not isinstance(value, tuple) or value else "`[]`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    json_schema.path().write_text(json_schema.text(), encoding="utf-8")
