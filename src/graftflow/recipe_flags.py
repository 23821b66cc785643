"""A recipe's fields as options of a command line: ``--learning-rate 3e-5``. Loads no TensorFlow."""

import argparse
from dataclasses import fields

from graftflow.recipes import Recipe


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser an option for each field of :class:`graftflow.recipes.Recipe`, with its default."""
    for field in fields(Recipe):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help="default: %(default)s",
        )


def recipe_of(given: argparse.Namespace) -> Recipe:
    """Return the checked recipe of parsed options.

    Raises:
        InputError: for a value out of its range.
    """
    recipe = Recipe(**{field.name: getattr(given, field.name) for field in fields(Recipe)})
    recipe.check()
    return recipe
