"""Numbers that JSON has no word for: NaN and the infinities are strings in our files and floats in our memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number(x: float) -> str:
    """A float as strict JSON, for lines built by f-string; NaN and infinities become strings."""
    x = float(x)
    return float.__repr__(x) if math.isfinite(x) else f'"{_name(x)}"'


def strict(value: Any) -> Any:
    """``value`` with non-finite floats as strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else _name(value)
    if isinstance(value, Mapping):
        return {key: strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(inner) for inner in value]
    return value


def loose(value: Any) -> Any:
    """``value``, as read from a file, with those strings as floats again."""
    if value.__class__ is str:
        return NAMES.get(value, value)
    if isinstance(value, dict):
        return {key: loose(inner) for key, inner in value.items()}
    return [loose(inner) for inner in value] if isinstance(value, list) else value


def _name(x: float) -> str:
    return "NaN" if x != x else "Infinity" if x > 0 else "-Infinity"
