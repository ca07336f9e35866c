"""Typed dotted overrides and merging of recipes: one set of rules for YAML and command line."""

import argparse
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from magicdistill.models.config import Config
from magicdistill.models.registry import UNKNOWN_CHOICE, Registry
from magicdistill.platform.config.command_line import FLAGS_TAKE_VALUES, parse
from magicdistill.platform.config.renamed import present_name

C = TypeVar("C", bound=Config)
Values = dict[str, Any]


UNLOADED_PLUGIN = "unloaded_plugin"
"""Type of the validation error for a plugin that cannot be imported."""


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the field, the value and the fix."""


def merge(cls: type[Config], base: Values, update: Values) -> Values:
    """Return `base` with `update` over it, section by section.

    Where `update` chooses another alternative of a section (`engine.kind`, `method.name`), the
    fields that the new alternative shares with the old one keep their values, the others go.
    """
    merged = dict(base)
    for key, value in update.items():
        field, before = cls.model_fields.get(key), base.get(key)
        if field is not None and isinstance(before, dict) and isinstance(value, dict):
            value = _merge_section(field, before, value)
        merged[key] = value
    return merged


def _merge_section(field: FieldInfo, before: Values, value: Values) -> Values:
    section = _alternative(field, before | value)
    if section is None:
        return before | value
    if get_origin(field.annotation) is dict:
        both = before.keys() & value.keys()
        return before | value | {key: merge(section, before[key], value[key]) for key in both}
    if _alternative(field, before) is not section:
        before = {key: kept for key, kept in before.items() if key in section.model_fields}
    return merge(section, before, value)


def validate(cls: type[C], values: Values, origin: str) -> C:
    """Build the configuration; `origin` says in errors where the values are from.

    Raises RecipeError for unknown keys, with the nearest valid name, and for wrong values.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems = (_explain(cls, values, problem) for problem in error.errors())
        raise RecipeError("\n".join([f"{origin}:", *(f"  {line}" for line in problems)])) from None


def apply_overrides(config: C, arguments: Sequence[str], *, program: str) -> C:
    """Apply `--section.field value` flags; as command-line parsers do, exit with 2 on a bad one."""
    config = prepare(config, arguments)
    form: Any = Annotated[type(config), FLAGS_TAKE_VALUES]
    return parse(form, arguments, prog=program, default=config)


def prepare(config: C, arguments: Sequence[str]) -> C:
    """Return the configuration that has a flag for every field that the arguments name.

    It has the alternatives that they choose, and entries for the scores that they limit.
    Raises RecipeError for a former name.
    """
    names = [word[2:].partition("=")[0].replace("-", "_") for word in arguments if word[:2] == "--"]
    for name in names:
        if (present := present_name(name)) is not None:
            raise RecipeError(f"unknown flag --{name}; it is --{present} now")
    config = choose_alternatives(config, arguments)
    for name in names:
        if update := _missing_entry(type(config), config, name.split(".")):
            values = merge(type(config), config.model_dump(), update)
            config = validate(type(config), values, f"--{name}")
    return config


def _missing_entry(cls: type[Config], value: Any, path: Sequence[str]) -> Values:
    """Return the update that adds what a flag names to a dictionary of dictionaries of sections.

    The names of scores have dots: `limits.portrait.motion.px.max` is `max` of `motion.px`.
    """
    first, *rest = path
    field, inner = cls.model_fields.get(first), getattr(value, first, None)
    if field is None or not rest:
        return {}
    if isinstance(inner, Config):
        update = _missing_entry(type(inner), inner, rest)
    elif isinstance(inner, dict) and any(
        get_origin(part) is dict for part in get_args(field.annotation)
    ):
        group, key = rest[0], ".".join(rest[1:-1])
        known = inner.get(group, {})
        update = {group: {**known, key: {}}} if key and key not in known else {}
    else:
        update = {}
    return {first: update} if update else {}


def choose_alternatives(config: C, arguments: Sequence[str]) -> C:
    """Apply only the flags that choose the alternative of a section, such as `--engine.kind`."""
    choices = alternatives(config)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in choices:
        parser.add_argument(f"--{name}", dest=name)
    chosen = vars(parser.parse_known_args(list(arguments))[0])
    for name, tag in chosen.items():
        if tag in choices[name] and tag != choices[name][0]:
            update: Any = tag
            for part in reversed(name.split(".")):
                update = {part: update}
            values = merge(type(config), config.model_dump(), update)
            config = validate(type(config), values, f"--{name} {tag}")
            return choose_alternatives(config, arguments)
    return config


def alternatives(config: Config, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Return each section's choice by dotted name, the present one first."""
    found: dict[str, tuple[str, ...]] = {}
    for name, field in type(config).model_fields.items():
        section = getattr(config, name)
        if not isinstance(section, Config):
            continue
        if (registry := registry_of(field)) is not None:
            present = getattr(section, registry.tag)
            others = sorted(set(registry.names()) - {present})
            found[f"{prefix}{name}.{registry.tag}"] = (present, *others)
        found |= alternatives(section, f"{prefix}{name}.")
    return found


def registry_of(field: FieldInfo) -> Registry[Any] | None:
    """Return the alternatives of a field, or of the members of its tuple."""
    members = (get_args(part) for part in (field.annotation, *get_args(field.annotation)))
    metadata = (*field.metadata, *(part for parts in members for part in parts))
    return next((part for part in metadata if isinstance(part, Registry)), None)


def _alternative(field: FieldInfo, values: Values) -> type[Config] | None:
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
        return f"unknown key {name}" + (f"; did you mean {near[0]}?" if near else "")
    if kind == "missing":
        return f"{name} is missing"
    if kind == UNLOADED_PLUGIN:
        return problem["msg"]
    if kind == UNKNOWN_CHOICE:
        return f"{name}.{problem['msg']}"
    shown = "" if isinstance(given, dict) else f" {given!r}:"
    return f"{name}:{shown} {problem['msg']}"


def _dotted(values: Any, location: Sequence[str | int]) -> str:
    """Turn pydantic's location into a dotted name, without its names of alternatives."""
    path = []
    for part in location:
        known = part in values if isinstance(values, dict) else isinstance(part, int)
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
                if (section := _alternative(field, inner)) is not None:
                    yield from _names(section, inner, f"{prefix}{name}.{key}.")
        else:
            inner = value if isinstance(value, dict) else {}
            if (section := _alternative(field, inner)) is not None:
                yield from _names(section, inner, f"{prefix}{name}.")
