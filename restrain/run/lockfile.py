"""``recipe.lock.yaml``: the recipe that defines a run, with ``auto`` resolved, and what identifies its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

HEADER = (
    "# What defines this run, with every auto resolved. Written by restrain {version}; not meant to be edited.\n"
    "# restrain resume goes on with it; restrain show prints it.\n"
)


def render(recipe_yaml: str, identity: Mapping[str, Any], version: str) -> str:
    """The lock's text. ``identity``: recipe name, data fingerprint, order version, decoder: plain scalars or null."""
    lines = "".join(f"  {key}: {_scalar(value)}\n" for key, value in identity.items())
    return HEADER.format(version=version) + recipe_yaml.rstrip("\n") + "\nlock:\n" + lines


def identity(text: str) -> dict[str, Any]:
    """The ``lock`` section of a lock's text; empty when there is none."""
    section = (YAML(typ="safe", pure=True).load(text) or {}).get("lock")
    return dict(section) if isinstance(section, Mapping) else {}


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
