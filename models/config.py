"""The base of every configuration in the project."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class Config(BaseModel):
    """A frozen set of typed fields; an unknown key, infinity and NaN are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _tell_numbers_from_booleans(cls, values: Any) -> Any:
        """Refuse what pydantic would convert: `true` for the number 1, and `on` for `true`."""
        problems = []
        for name in (n for n in cls.model_fields if isinstance(values, dict) and n in values):
            kinds = _kinds(cls.model_fields[name].annotation)
            for item in _items(values[name]):
                if isinstance(item, bool) and bool not in kinds and kinds & {int, float}:
                    problems.append(_problem(name, item, "give a number"))
                elif kinds <= {bool, type(None)} and not isinstance(item, bool | None):
                    problems.append(_problem(name, item, "give true or false"))
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return values


def _problem(name: str, given: Any, fix: Any) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("other_kind", fix), loc=(name,), input=given)


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
