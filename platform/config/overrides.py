"""Typed dotted overrides and merging of recipes: one set of rules for YAML and command line."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo

from magicdistill.models.config import Config
from magicdistill.platform.config.command_line import FLAGS_TAKE_VALUES, parse
from magicdistill.platform.config.renamed import present_name
from magicdistill.platform.config.validation import (
    C,
    RecipeError,
    Values,
    alternative,
    registry_of,
    validate,
)


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
    section = alternative(field, before | value)
    if section is None:
        return before | value
    if get_origin(field.annotation) is dict:
        both = {
            key: merge(section, before[key], inner)
            for key, inner in value.items()
            if isinstance(inner, dict) and isinstance(before.get(key), dict)
        }
        return before | value | both
    if alternative(field, before) is not section:
        before = {key: kept for key, kept in before.items() if key in section.model_fields}
    return merge(section, before, value)


def apply_overrides(config: C, arguments: Sequence[str], *, program: str) -> C:
    """Apply `--section.field value` flags; as command-line parsers do, exit with 2 on a bad one.

    Raises RecipeError as `prepare` does.
    """
    config = prepare(config, arguments)
    form: Any = Annotated[type(config), FLAGS_TAKE_VALUES]
    return parse(form, last_choices(config, arguments), prog=program, default=config)


def prepare(config: C, arguments: Sequence[str]) -> C:
    """Return the configuration that has a flag for every field that the arguments name.

    It has the alternatives that they choose, and entries for the scores that they limit.
    Raises RecipeError for a former name, and for an alternative that does not exist.
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
    """Apply only the flags that choose the alternative of a section, such as `--engine.kind`.

    Raises RecipeError, with all choices, for one that does not exist.
    """
    choices = alternatives(config)
    chosen, _ = _read_choices(choices, arguments)
    for name, tag in chosen.items():
        if tag is None or tag == choices[name][0]:
            continue
        if tag not in choices[name]:
            names = ", ".join(sorted(choices[name]))
            raise RecipeError(f"--{name} {tag}: choose one of {names}")
        update: Any = tag
        for part in reversed(name.split(".")):
            update = {part: update}
        values = merge(type(config), config.model_dump(), update)
        config = validate(type(config), values, f"--{name} {tag}")
        return choose_alternatives(config, arguments)
    return config


def last_choices(config: Config, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each choice of an alternative once, as it was made last."""
    chosen, rest = _read_choices(alternatives(config), arguments)
    return [*rest, *(f"--{name}={tag}" for name, tag in chosen.items() if tag is not None)]


def _read_choices(
    choices: Iterable[str], arguments: Sequence[str]
) -> tuple[dict[str, str | None], list[str]]:
    """Return what the arguments choose last for each dotted name, and all other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in choices:
        parser.add_argument(f"--{name}", dest=name)
    try:
        chosen, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise RecipeError(f"{error.argument_name}: give a value") from None
    return vars(chosen), rest


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
