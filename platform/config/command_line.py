"""How a command line becomes a configuration: tyro, with the project's conventions for flags."""

import sys
from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

import tyro
from pydantic import ValidationError
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from magicdistill.models.config import Config

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
        fields = [
            StructFieldSpec(name, hints[name], _default(info, name), description_of(chosen, name))
            for name in chosen.model_fields
        ]
        return StructConstructorSpec(instantiate=chosen, fields=tuple(fields))

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


def parse(form: type[T], arguments: Sequence[str], **options: Any) -> T:
    """Parse a command line into `form`; exits with 2, as parsers do, where it is wrong."""
    return _cli(form, arguments, **options)


def parse_known(form: type[T], arguments: Sequence[str], **options: Any) -> tuple[T, list[str]]:
    """Parse what `form` has of a command line; return the rest also."""
    return _cli(form, arguments, return_unknown_args=True, **options)


def _cli(form: type[Any], arguments: Sequence[str], **options: Any) -> Any:
    try:
        return tyro.cli(
            form,
            args=list(arguments),
            config=(tyro.conf.AvoidSubcommands,),
            use_underscores=True,
            registry=_registry(),
            **options,
        )
    except ValidationError as error:  # of flags without a section, which tyro lets pass
        for problem in error.errors():
            name = ".".join(map(str, problem["loc"]))
            print(f"--{name} {problem['input']}: {problem['msg']}", file=sys.stderr)
        sys.exit(2)
