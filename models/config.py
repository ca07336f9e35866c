"""The base of every configuration in the project."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

NOT_A_NUMBER, NOT_A_BOOLEAN = "not_a_number", "not_a_boolean"
"""Types of the validation errors for a boolean in a number's place, and the other way round."""


class Config(BaseModel):
    """A frozen set of typed fields; an unknown key, infinity and NaN are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _tell_numbers_from_booleans(cls, value: Any, info: Any) -> Any:
        """Refuse what pydantic would convert: `true` for the number 1, and `on` for `true`."""
        kinds = _kinds(cls.model_fields[info.field_name].annotation)
        for item in _items(value):
            if isinstance(item, bool) and bool not in kinds and kinds & {int, float}:
                raise PydanticCustomError(NOT_A_NUMBER, "give a number")
            if kinds <= {bool, type(None)} and not isinstance(item, bool | None):
                raise PydanticCustomError(NOT_A_BOOLEAN, "give true or false")
        return value


def demand_range(least: float | None, most: float | None) -> None:
    """Raise ValueError where the first bound is above the second; None is no bound."""
    if least is not None and most is not None and least > most:
        raise ValueError(f"min {least:g} is above max {most:g}: exchange them")


@cache
def _kinds(annotation: Any) -> frozenset[Any]:
    """Return the types that an annotation is made of; a literal counts as the type of its value."""
    inner = get_args(annotation)
    if not inner:
        return frozenset([annotation if isinstance(annotation, type) else type(annotation)])
    return frozenset(kind for part in inner for kind in _kinds(part))


def _items(value: Any) -> Iterator[Any]:
    """Yield the plain values of nested lists and mappings."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            yield from _items(item)
    else:
        yield value
