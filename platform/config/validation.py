"""Building configurations from plain values, with errors that name the field and the fix."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from magicdistill.models.config import Config
from magicdistill.models.registry import UNKNOWN_CHOICE, Registry
from magicdistill.platform.config.renamed import present_name

C = TypeVar("C", bound=Config)
Values = dict[str, Any]

MAX_NAME_BYTES = 200
UNLOADED_PLUGIN = "unloaded_plugin"
"""Type of the validation error for a plugin that cannot be imported."""


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the field, the value and the fix."""


def demand_folder_name(name: str) -> str:
    """Return a name under which a folder can be made inside another; raises ValueError for others.

    The folder's name gets a time and more behind it, within the 255 bytes of a file system.
    """
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"{len(name)} letters are too long for a folder: give at most 100")
    if not re.fullmatch(r"[\w\d][\w .+=,@-]*", name) or name.endswith((" ", ".")):
        raise ValueError(
            "it names a folder inside that of the runs: begin with a letter or a digit, and use "
            "those, spaces, '.', '_', '-', '+', '=', ',' and '@'"
        )
    return name


def validate(cls: type[C], values: Values, origin: str) -> C:
    """Build the configuration; `origin` says in errors where the values are from.

    Raises RecipeError for unknown keys, with the nearest valid name, and for wrong values.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems = explain(cls, values, error)
        raise RecipeError("\n".join([f"{origin}:", *(f"  {line}" for line in problems)])) from None


def explain(cls: type[Config], values: Values, error: ValidationError) -> list[str]:
    """Return a line for each thing that is wrong with the values of a configuration."""
    return [_explain(cls, values, problem) for problem in error.errors()]


def registry_of(field: FieldInfo) -> Registry[Any] | None:
    """Return the alternatives of a field, or of the members of its tuple."""
    members = (get_args(part) for part in (field.annotation, *get_args(field.annotation)))
    metadata = (*field.metadata, *(part for parts in members for part in parts))
    return next((part for part in metadata if isinstance(part, Registry)), None)


def alternative(field: FieldInfo, values: Values) -> type[Config] | None:
    """Return the configuration class that a section's values are for, if that can be told."""
    if (registry := registry_of(field)) is not None:
        default = field.get_default(call_default_factory=True)
        return registry.get(values.get(registry.tag, getattr(default, registry.tag, None)))
    return next(sections_in(field.annotation), None)


def sections_in(annotation: Any) -> Iterator[type[Config]]:
    """Yield the configuration classes inside a union, a tuple or an Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


def _explain(cls: type[Config], values: Values, problem: Any) -> str:
    """Say in one line which field is wrong, its value and what would be right."""
    name = _dotted(values, problem["loc"])
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        if (present := present_name(name)) is not None:
            return f"unknown key {name}; it is {present} now"
        near = get_close_matches(name, list(_names(cls, values)), n=1, cutoff=0.5)
        return f"unknown key {name}; " + (f"did you mean {near[0]}?" if near else "leave it out")
    if kind == "missing":
        return f"{name} is missing; give it"
    if kind == UNLOADED_PLUGIN:
        return problem["msg"]
    if kind == UNKNOWN_CHOICE:
        return f"{name}.{problem['msg']}"
    message = problem["msg"].removeprefix("Value error, ")
    shown = [] if isinstance(given, dict | Config) else [repr(given)]
    return ": ".join([*filter(None, [name]), *shown, message])


def _dotted(values: Any, location: Sequence[Any]) -> str:
    """Turn pydantic's location into a dotted name, without its names of alternatives."""
    path = []
    for part in location:
        if isinstance(values, dict):
            known = part in values
        else:
            known = (
                isinstance(part, int) and isinstance(values, list | tuple) and part < len(values)
            )
        if known:
            values = values[part]
        if known or part == location[-1]:
            path.append(str(part))
    return ".".join(path)


def _names(cls: type[Config], values: Values, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names that a recipe with these alternatives may set."""
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}"
        value = values.get(name)
        if isinstance(value, list | tuple) or get_origin(field.annotation) is dict:
            items = value.items() if isinstance(value, dict) else enumerate(value or ())
            for key, item in items:
                inner = item if isinstance(item, dict) else {}
                if (section := alternative(field, inner)) is not None:
                    yield from _names(section, inner, f"{prefix}{name}.{key}.")
        else:
            inner = value if isinstance(value, dict) else {}
            if (section := alternative(field, inner)) is not None:
                yield from _names(section, inner, f"{prefix}{name}.")
