"""Restrain trains deep residual networks: one recipe from a laptop to 1,000 GPUs; nothing lost, nothing guessed."""

import importlib

__version__ = "0.1.0"

_PUBLIC = ("load", "open_run", "runs", "Run", "fit", "Callback", "Classify")


def __getattr__(name: str):
    """The public functions are of ``restrain.api``, which is imported when the first of them is asked for."""
    if name in _PUBLIC:
        return getattr(importlib.import_module("restrain.api"), name)
    raise AttributeError(f"module 'restrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
