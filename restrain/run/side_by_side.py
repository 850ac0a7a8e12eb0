"""Several runs beside one another: what to call them, and where their recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from restrain.errors import UserError
from restrain.recipe import ABSENT, Recipe, leaves, load
from restrain.recipe.writing import flow


def short_names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    whole = [path.absolute() for path in runs]
    for count in range(1, 1 + max(len(path.parts) for path in whole)):
        names = ["/".join(path.parts[-count:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(runs, 1)]


def locked_recipe(run: Path) -> Recipe:
    """What a run trains. Raises UserError where its lock is gone."""
    lock = run / "recipe.lock.yaml"
    if not lock.is_file():
        raise UserError(f"{run} has no recipe.lock.yaml, so nobody knows what it trains. Restore it from a copy.")
    return load(str(lock)).recipe


def recipe_differences(recipes: Sequence[Recipe]) -> list[tuple[str, ...]]:
    """A row for each key in which they differ, placement too: the key, then each value, ``-`` where it has none."""
    values = [leaves(recipe) for recipe in recipes]
    rows = []
    for key in dict.fromkeys(key for one in values for key in one):
        found = [one.get(key, ABSENT) for one in values]
        if any(value != found[0] for value in found):
            rows.append((key, *("-" if value is ABSENT else flow(value) for value in found)))
    return rows
