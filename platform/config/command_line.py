"""How a command line becomes a configuration: tyro, with the project's conventions for flags."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, NoReturn, TypeVar, get_type_hints

import tyro
from pydantic import ValidationError
from tyro import _errors as parse_errors  # tyro documents its hook there
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from magicdistill.models.config import Config
from magicdistill.platform.config.validation import RecipeError, explain

T = TypeVar("T")
FLAGS_TAKE_VALUES = tyro.conf.FlagConversionOff
"""Marks a form whose booleans are given as `--flag true`."""


def description_of(cls: type[Config], name: str) -> str | None:
    """Return a field's documentation, or what a field that it overrides has."""
    bases = (base for base in cls.__mro__ if issubclass(base, Config))
    fields = (base.model_fields.get(name) for base in bases)
    return next((field.description for field in fields if field and field.description), None)


def _default(info: StructTypeInfo, name: str) -> Any:
    if isinstance(info.default, Config):
        return getattr(info.default, name)
    field = info.type.model_fields[name]
    return tyro.MISSING if field.is_required() else field.get_default(call_default_factory=True)


def _registry() -> ConstructorRegistry:
    """Let booleans and null be written as in YAML, and documentation be pydantic's alone: for a
    field without any, tyro would search the source, a third of the time of `--help`."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def _(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not (isinstance(info.type, type) and issubclass(info.type, Config)):
            return None
        chosen = type(info.default) if isinstance(info.default, Config) else info.type
        hints = get_type_hints(chosen, include_extras=True)
        members = [
            StructFieldSpec(name, hints[name], _default(info, name), description_of(chosen, name))
            for name in chosen.model_fields
        ]
        return StructConstructorSpec(
            instantiate=partial(_Unvalidated.of, chosen), fields=tuple(members)
        )

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
        if info.type is not type(None):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="null",
            instance_from_str=lambda words: None,
            choices=("null", "None"),
            is_instance=lambda value: value is None,
            str_from_instance=lambda value: ["null"],
        )

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
        if info.type is not bool:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="{true,false}",
            instance_from_str=lambda words: words[0].lower() == "true",
            choices=("true", "false", "True", "False"),
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [str(value).lower()],
        )

    return registry


@dataclass(frozen=True)
class _Unvalidated:
    """The values of a configuration as they were parsed; they are validated all together."""

    cls: type[Config]
    values: dict[str, Any]

    @classmethod
    def of(cls, config: type[Config], **values: Any) -> "_Unvalidated":
        return cls(config, values)


def parse(form: type[T], arguments: Sequence[str], **options: Any) -> T:
    """Parse a command line into `form`; exits with 2, as parsers do, where it is wrong."""
    return _cli(form, arguments, **options)


def parse_known(form: type[T], arguments: Sequence[str], **options: Any) -> tuple[T, list[str]]:
    """Parse what `form` has of a command line; return the rest also."""
    return _cli(form, arguments, return_unknown_args=True, **options)


def _cli(form: type[Any], arguments: Sequence[str], **options: Any) -> Any:
    hook = partial(_explain, options.get("default", form))
    try:
        with parse_errors.on_parse_error(hook):
            found = tyro.cli(
                form,
                args=list(arguments),
                config=(tyro.conf.AvoidSubcommands,),
                use_underscores=True,
                registry=_registry(),
                **options,
            )
        return _validated(found)
    except RecipeError as error:
        refuse(options.get("prog", ""), error)


def refuse(program: str, error: Exception) -> NoReturn:
    """Exit with 2 after a user's mistake."""
    print(f"{error}\nSee {program} --help", file=sys.stderr)
    sys.exit(2)


def _validated(found: Any) -> Any:
    """Build the configurations in what was parsed; raises RecipeError for wrong values."""
    if isinstance(found, tuple):  # with the arguments that are not known
        return (_validated(found[0]), *found[1:])
    if isinstance(found, _Unvalidated):
        values = _plain(found)
        try:
            return found.cls.model_validate(values)
        except ValidationError as error:
            lines = explain(found.cls, values, error)
            raise RecipeError("\n".join(f"--{line}" for line in lines)) from None
    if is_dataclass(found) and not isinstance(found, type):
        parts = {part.name: _validated(getattr(found, part.name)) for part in fields(found)}
        return replace(found, **parts)
    return found


def _plain(value: Any) -> Any:
    """Return nested values as mappings and lists, configurations that no flag can change whole."""
    if isinstance(value, _Unvalidated):
        value = value.values
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _explain(form: Any, event: parse_errors.ParseErrorEvent) -> None:
    """Raise RecipeError with one sentence about what cannot be parsed."""
    match event:
        case parse_errors.InvalidChoice():
            choices = ", ".join(sorted({_spelt(choice) for choice in event.choices}))
            raise RecipeError(f"{_flag(event)} {event.value}: choose one of {choices}")
        case parse_errors.UnrecognizedArgs():
            raise RecipeError(_unknown(form, event.tokens))
        case parse_errors.BadValue():
            raise RecipeError(f"{_flag(event)} takes {_takes(event)}, and too little follows it")
        case parse_errors.InstantiationFailure() if event.argument is not None:
            raise RecipeError(f"{_flag(event)} takes {_takes(event)}: {event.message}")
        case parse_errors.MissingArgs():
            missing = [one.arg for one in event.missing_arguments]
            names = (one.lowered.name_or_flags or (one.lowered.metavar,) for one in missing)
            raise RecipeError(f"give {' and '.join(str(name[0]) for name in names)}")


def _spelt(choice: str) -> str:
    """Return a choice as it is spelt in YAML."""
    return {"True": "true", "False": "false", "None": "null"}.get(choice, choice)


def _flag(event: Any) -> str:
    lowered = event.argument.lowered
    return lowered.name_or_flags[-1] if lowered.name_or_flags else str(lowered.metavar)


def _takes(event: Any) -> str:
    return str(event.argument.lowered.metavar)


def _unknown(form: Any, tokens: Sequence[str]) -> str:
    """Say that nothing takes these words, with the nearest flag."""
    word, known = tokens[0], list(dict.fromkeys(_names(form)))
    if not word.startswith("-"):
        hint = f"; is it --recipe {word}?" if "recipe" in known else ""
        return f"{word!r} is no flag and belongs to none{hint}"
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"unknown flag --{name}" + (f"; did you mean --{near[0]}?" if near else "")


def _names(form: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the flags of a form, which may be a class or have values."""
    if isinstance(form, Config) or (isinstance(form, type) and issubclass(form, Config)):
        cls = form if isinstance(form, type) else type(form)
        members = {name: getattr(form, name, None) for name in cls.model_fields}
    elif is_dataclass(form) and not isinstance(form, type):
        for part in fields(form):
            yield from _names(getattr(form, part.name))
        return
    elif isinstance(form, dict):
        members = form
    elif isinstance(form, tuple):
        members = {str(index): item for index, item in enumerate(form)}
    else:
        return
    for name, value in members.items():
        yield f"{prefix}{name}"
        yield from _names(value, f"{prefix}{name}.")
