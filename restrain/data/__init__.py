from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restrain.data.wds.indexed import IndexedSource

__all__ = ["IndexedSource"]


def __getattr__(name: str) -> Any:
    if name == "IndexedSource":
        return importlib.import_module("restrain.data.wds.indexed").IndexedSource
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
