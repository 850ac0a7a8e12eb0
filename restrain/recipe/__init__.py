"""Recipes: plain data that defines a run. No torch in here."""

from restrain.recipe.checks import Misfit
from restrain.recipe.durations import Duration
from restrain.recipe.loading import Resolved, available, find, load, override
from restrain.recipe.nodes import Origin
from restrain.recipe.placement import is_placement
from restrain.recipe.schema import Recipe
from restrain.recipe.site import Site
from restrain.recipe.writing import ABSENT, differences, leaves, plain, to_yaml

__all__ = [
    "ABSENT",
    "Duration",
    "Misfit",
    "Origin",
    "Recipe",
    "Resolved",
    "Site",
    "available",
    "differences",
    "find",
    "is_placement",
    "leaves",
    "load",
    "override",
    "plain",
    "to_yaml",
]
