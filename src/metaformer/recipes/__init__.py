"""Recipes of published runs: `load_recipe("imagenet/poolformer_s12")` is a TrainConfig."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from metaformer.config import TrainConfig
from metaformer.errors import UnknownName
from metaformer.recipes.recipe import Recipe
from metaformer.serialize import from_dict, merged, to_dict

__all__ = ["RECIPES", "Recipe", "find", "load_recipe"]

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


def load_recipe(name: str, changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """The configuration of a recipe, for `metaformer.train`.

    Args:
        name: as `metaformer list --recipes` has it, such as `finetune`.
        changes: fields by the names of `metaformer train`'s options, such as `{"optim.lr": 1e-3}`, or
            sections of them, such as `{"optim": {"lr": 1e-3}}`.

    Raises:
        UnknownName: no such recipe or field; the message suggests similar names.
        ConfigError: a value that the field cannot have.
    """
    values = to_dict(find(name)())
    for field, value in (changes or {}).items():
        change = value
        for part in reversed(field.split(".")):
            change = {part: change}
        values = merged(values, change)
    return from_dict(TrainConfig, values)
