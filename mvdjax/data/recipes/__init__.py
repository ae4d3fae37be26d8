"""How a record becomes a sample: one module per stage, found by its name. Decoders are imported when they are used."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from mvdjax import keywords
from mvdjax.data.schema import Recipe
from mvdjax.errors import UserError


def recipe_class(name: str) -> Any:
    """`mvdjax.data.recipes.<name>.Recipe`.

    Raises:
      UserError: no such recipe.
    """
    module = f'mvdjax.data.recipes.{name}'
    try:
        return importlib.import_module(module).Recipe
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        names = [found.name for found in pkgutil.iter_modules(__path__)]
        raise UserError(
            f'there is no data recipe {name!r}; {keywords.nearest(name, names)}choose one of {names}'
        ) from (error)


def make_recipe(name: str, options: Mapping[str, Any]) -> Recipe:
    """A recipe with its options.

    Raises:
      UserError: no such recipe, or an option that it does not have or take.
    """
    return keywords.build(recipe_class(name), options, f'data recipe {name!r}')
