"""What a path in a recipe, a flag or a list means: the one place that decides it."""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

OBJECT_STORES = ("s3",)
"""Schemes of the object stores that data and copies of checkpoints can be in."""
UPLOADS = ("https", "s3", "gs", "azure", "abfss")
"""Schemes from which Ray fetches the working directory of a job, as a zip archive."""
TRACKING_STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""Schemes of MLflow's servers and data bases."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
"""An address; of its slashes one is enough, since `pathlib` merges them."""
_FILE = re.compile(r"file:(?://(?:localhost)?(?=/)|(?=/[^/]))", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
_SQLITE = "sqlite:///"


class PathError(ValueError):
    """A path that cannot be used; the message has the value and the fix."""

    def __init__(self, value: object, reason: str) -> None:
        super().__init__(f"{value}: {reason}")
        self.reason = reason


def local_path(text: str | PurePath) -> str:
    """Return a path on this machine or a shared file system.

    `~` and variables of the environment are expanded, and `file:///data` is `/data`; a relative
    path stays relative. Raises PathError for any other address.
    """
    path = _expanded(text)
    if scheme_of(path):
        raise PathError(
            text,
            "this takes a path on this machine or on a shared file system, not an address; "
            f"give a local path (only `mirror`, `data_root`, `pairs.stored` and the sources of "
            f"clips can be at {_spelled(OBJECT_STORES)})",
        )
    return path


def location(text: str | PurePath, schemes: tuple[str, ...] = OBJECT_STORES) -> str:
    """Return an address with one of the `schemes`, or a path as `local_path` does.

    Raises PathError for another address, naming those that are possible.
    """
    path = _expanded(text)
    scheme = scheme_of(path)
    if scheme and scheme not in schemes:
        raise PathError(
            text,
            f"{scheme}:// is not supported; give {_spelled(schemes)}, file:// or a local path",
        )
    return path


def working_directory(text: str | PurePath) -> str:
    """Return a folder, or the address of an archive that Ray fetches; raises as `location`."""
    return location(text, UPLOADS)


def tracking_store(text: str | PurePath) -> str:
    """Return the address of an MLflow server or data base; a file `….db` is a data base of SQLite.

    Raises PathError for everything else, a folder among it: MLflow writes no store of files any
    more.
    """
    path = _expanded(text)
    if path.startswith(_SQLITE):
        return _SQLITE + os.path.expanduser(path.removeprefix(_SQLITE))
    scheme = scheme_of(path)
    if path == "databricks" or (scheme or "").partition("+")[0] in TRACKING_STORES:
        return path
    if scheme is None and path.endswith(".db"):
        return _SQLITE + path
    reason = (
        f"{scheme}:// is not supported; give {_spelled(TRACKING_STORES)} or a file ending in .db"
        if scheme
        else f"MLflow keeps no runs in plain folders any more; give {_SQLITE}{path}/mlflow.db"
    )
    raise PathError(text, reason)


def scheme_of(text: str) -> str | None:
    """Return the scheme of an address, None for a path. One letter is none: a drive has that."""
    found = _ADDRESS.fullmatch(text)
    return found.group(1).lower() if found else None


def _expanded(text: str | PurePath) -> str:
    """Return a path or an address with everything expanded; a file's address as its path."""
    path = _VARIABLE.sub(lambda found: _variable(text, found), str(text))
    if not path or "\0" in path:
        wrong = "has a null character in it" if path else "is empty; `.` is the current folder"
        raise PathError(repr(path), f"a path that {wrong}")
    if _FILE.match(path):
        return unquote(_FILE.sub("", path))
    if found := _ADDRESS.fullmatch(path):
        if found.group(1).lower() == "file":
            raise PathError(text, "of another machine; write file:///folder or /folder")
        return f"{found.group(1)}://{found.group(2)}" if isinstance(text, PurePath) else path
    home = os.path.expanduser(path)
    if home.startswith("~") and not os.path.lexists(home):
        raise PathError(text, "there is no user of that name; write the path out")
    return home


def _variable(text: str | PurePath, found: re.Match[str]) -> str:
    name = found.group(1) or found.group(2)
    if name not in os.environ:
        raise PathError(text, f"the variable {name} is not set; set it or write the path out")
    return os.environ[name]


def _spelled(schemes: tuple[str, ...]) -> str:
    return ", ".join(f"{scheme}://" for scheme in schemes)


def _validator(check: Callable[[str | PurePath], str]) -> BeforeValidator:
    """Let a field be checked; what is no text is left to its type."""

    def validate(value: Any) -> Any:
        if not isinstance(value, str | PurePath):
            return value
        try:
            return check(value)
        except PathError as error:
            raise PydanticCustomError("path", "{why}", {"why": error.reason}) from error

    validate.__qualname__ = check.__name__
    return BeforeValidator(validate)


LocalPath = Annotated[str, _validator(local_path)]
"""Type of a field that takes a path of this machine as text."""
LocalFile = Annotated[Path, _validator(local_path)]
"""Type of a field that takes a path of this machine."""
Location = Annotated[str, _validator(location)]
"""Type of a field that takes a local path or an address such as `s3://bucket/prefix`."""
WorkingDirectory = Annotated[str, _validator(working_directory)]
"""Type of a field that takes a folder, or an address that Ray fetches."""
TrackingStore = Annotated[str, _validator(tracking_store)]
"""Type of a field that takes an MLflow server or data base."""
