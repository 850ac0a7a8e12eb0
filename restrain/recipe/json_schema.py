"""The recipe's schema as JSON Schema, for editors: completion, hover texts and a red line under a misspelt key.

Written to ``recipe.schema.json`` beside the shipped recipes by ``python docs/reference.py``. It is what an editor can
know of one file: what depends on several keys, or on a base, only ``restrain check`` knows. Draft 7, because that is
what yaml-language-server speaks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from restrain.recipe.checks import show
from restrain.recipe.durations import Duration
from restrain.recipe.loading import folder
from restrain.recipe.schema import Recipe

FILE = "recipe.schema.json"
BASE = {
    "type": "string",
    "minLength": 1,
    "description": "Another recipe, shipped or a file beside this one, of which this one is a delta.",
}


def path() -> Path:
    """The shipped file."""
    return folder() / FILE


def text() -> str:
    """The file's content."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file.

    A file with a ``base`` needs no keys. In one without, the top-level keys are required; those of a section aren't, as
    a section's ``name`` may come from a base. The entries of lists, which replace and never merge, are held to all.
    """
    found = Recipe.model_json_schema()
    sections = found.pop("$defs")
    listed = _listed(found, sections)
    for name, section in sections.items():
        _clean(section)
        if name not in listed:
            section.pop("required", None)
    required = found.pop("required")
    _clean(found)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A recipe of Restrain",
        "description": " ".join((Recipe.__doc__ or "").split()),
        "type": "object",
        "additionalProperties": False,
        "properties": {"base": BASE, **found["properties"]},
        "if": {"not": {"required": ["base"]}},
        "then": {"required": required},
        "definitions": sections,
    }


def _listed(found: dict[str, Any], sections: dict[str, Any]) -> set[str]:
    """The sections that stand in lists, by the names of their definitions."""
    names: set[str] = set()

    def walk(node: Any, in_list: bool) -> None:
        if isinstance(node, list):
            for one in node:
                walk(one, in_list)
        if not isinstance(node, dict):
            return
        name = str(node.get("$ref", "")).rpartition("/")[2]
        if name and in_list and name not in names:
            names.add(name)
            walk(sections[name], True)
        for key, one in node.items():
            if key != "default":
                walk(one, in_list or key in ("items", "prefixItems"))

    walk(found, False)
    walk(list(sections.values()), False)
    return names


def _clean(node: Any) -> None:
    """Turn pydantic's dialect into what editors show well, in place."""
    if isinstance(node, list):
        for one in node:
            _clean(one)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        del node["title"]
    if "$ref" in node:
        node["$ref"] = node["$ref"].replace("#/$defs/", "#/definitions/")
    if "discriminator" in node:
        # A delta may leave the name to its base: then several fit.
        del node["discriminator"]
        node["anyOf"] = node.pop("oneOf")
    if node.get("type") == "array" and "minLength" in node:
        node["minItems"] = node.pop("minLength")
    if "prefixItems" in node:  # a pair of equals, of which draft 7 has no such word
        node["items"], *others = node.pop("prefixItems")
        assert all(one == node["items"] for one in others)
    for key, one in node.items():
        if key != "default":
            _clean(one)
    for one in node.get("properties", {}).values():
        _say_default(one)


def _say_default(node: dict[str, Any]) -> None:
    """Editors show the description and not the default: put the one into the other."""
    default = node.pop("default", ...)
    if isinstance(default, dict) and default.keys() == {"value", "unit"}:
        default = str(Duration(**default))
    if default is ... or isinstance(default, dict):  # a section's own keys say theirs
        return
    node["default"] = default
    if "description" in node and not any(isinstance(one, dict) for one in _items(default)):
        node["description"] += f" Default: {show(default)}."


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
