"""All tests of the platform may take the small recipe."""

from tests.small_recipe import base, recipe

__all__ = ["base", "recipe"]
