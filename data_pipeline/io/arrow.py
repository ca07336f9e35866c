"""Arrow's functions over columns."""

from typing import Any


class _Functions:
    """The module `pyarrow.compute`, imported at its first use: no `--help` needs it."""

    def __getattr__(self, name: str) -> Any:
        import pyarrow.compute

        return getattr(pyarrow.compute, name)


pc: Any = _Functions()
"""Type checkers know none of the functions, which are made when their module is imported."""
