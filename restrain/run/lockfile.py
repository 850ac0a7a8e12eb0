"""``recipe.lock.yaml``: the recipe that defines a run, with ``auto`` resolved, and what identifies its data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from restrain.errors import WorldError
from restrain.run.files import world_error

HEADER = (
    "# What defines this run, with every auto resolved. Written by restrain {version}; not meant to be edited.\n"
    "# restrain resume goes on with it; restrain show prints it.\n"
)


def render(recipe_yaml: str, identity: Mapping[str, Any], version: str) -> str:
    """The lock's text. ``identity``: recipe name, data fingerprint, order version, decoder: plain scalars or null."""
    lines = "".join(f"  {key}: {_scalar(value)}\n" for key, value in identity.items())
    text = HEADER.format(version=version) + recipe_yaml.rstrip("\n") + "\nlock:\n" + lines
    return f"{text}  sha256: {_digest(text)}\n"


def read(path: Path) -> str:
    """The text of a lock, as it was written: what it says of the run must be what the run was.

    Raises:
        WorldError: it cannot be read, or it was edited or damaged.
    """
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise world_error("read the run's lock", path, error) from None
    match = re.search(r"^  sha256: ([0-9a-f]{64})\n\Z", text, re.MULTILINE)
    if match is None or match[1] != _digest(text[: match.start()]):
        raise WorldError(
            f"{path} is not as Restrain wrote it (its checksum differs): it was edited or damaged, so nobody knows "
            f"what the run was trained with. Undo the edit. A change is made on purpose by restrain resume "
            f"{path.parent} KEY=VALUE --allow KEY, or in a run that branches off: restrain train ... --from "
            f"{path.parent}."
        )
    return text


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
