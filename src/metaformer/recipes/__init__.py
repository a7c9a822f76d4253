"""Recipes of published runs: `RECIPES["imagenet/poolformer_s12"]()` is a TrainConfig."""

import importlib
import pkgutil

from metaformer.errors import UnknownName
from metaformer.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "find"]

_names = (f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
_siblings = map(importlib.import_module, _names)

RECIPES: dict[str, Recipe] = {run.name: run for module in _siblings for run in getattr(module, "RUNS", ())}
"""Every recipe by name; a new one is an entry in the `RUNS` of a file in this folder."""


def find(name: str) -> Recipe:
    """Recipe by name.

    Raises:
        UnknownName: no such recipe; the message suggests similar names.
    """
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]
