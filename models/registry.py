"""Alternatives that a recipe chooses by name: those of the project and those of plugins."""

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from magicdistill.models.config import Config

C = TypeVar("C", bound=Config)
T = TypeVar("T", bound=type[Config])

UNKNOWN_CHOICE = "unknown_choice"
"""Type of the validation error for a name that is not registered."""


class Registry(Generic[C]):
    """The configurations among which one field of a recipe chooses, by the value of their tag.

    `Annotated[Base, registry]` is the type of that field: it accepts every registered
    configuration, a mapping whose tag names one, and nothing else. A configuration names itself
    in a `Literal`: `kind: Literal["koala"] = "koala"`.
    """

    def __init__(self, what: str, base: type[C], *known: type[C], tag: str = "kind") -> None:
        """Take the name of the alternatives in messages, their base class and the first of them."""
        self.what, self.base, self.tag = what, base, tag
        self._classes: dict[str, type[C]] = {}
        for cls in known:
            self.register(cls)

    def register(self, cls: T) -> T:
        """Add a configuration; returns it, so that this decorates a class.

        Raises:
            ValueError: if another class has the name, or it is no configuration of this kind.
        """
        if not issubclass(cls, self.base):
            raise ValueError(f"{cls.__name__} is no {self.base.__name__}")
        for name in get_args(cls.model_fields[self.tag].annotation):
            before = self._classes.get(name, cls)
            if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"{self.what} {name} is {before.__module__}.{before.__qualname__}")
            self._classes[name] = cls
        return cls

    def names(self) -> tuple[str, ...]:
        """Return the names in the order of registration."""
        return tuple(self._classes)

    def get(self, name: object) -> type[C] | None:
        """Return the configuration of a name, None where none is registered."""
        return self._classes.get(name) if isinstance(name, str) else None

    def __iter__(self) -> Iterator[type[C]]:
        return iter(dict.fromkeys(self._classes.values()))

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def _validate(self, value: Any) -> C:
        if isinstance(value, self.base) and self.get(getattr(value, self.tag, None)):
            return value
        if not isinstance(value, Mapping):
            raise PydanticCustomError(
                "not_a_mapping", "a {what} is a mapping with the key {tag}", self._context()
            )
        cls = self.get(value.get(self.tag))
        if cls is None:
            given = repr(value[self.tag]) if self.tag in value else "nothing"
            raise PydanticCustomError(
                UNKNOWN_CHOICE,
                "{tag}: {given} is no {what}; there are {names}",
                self._context() | {"given": given, "names": ", ".join(self.names())},
            )
        return cls.model_validate(value)

    def _context(self) -> dict[str, Any]:
        return {"what": self.what, "tag": self.tag}
