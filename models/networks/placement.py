"""How parameters are stored while networks are built, filled and written."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Placement(Protocol):
    """Lets networks be built and filled without knowing how their parameters are stored."""

    def building(self) -> AbstractContextManager[object]:
        """Store the parameters of the modules that are built inside in this placement."""
        ...

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[bool]:
        """Hold whole parameters inside; yield whether what this rank writes there is kept."""
        ...


class Whole:
    """Every rank holds whole parameters."""

    def building(self) -> AbstractContextManager[object]:
        """Change nothing."""
        return nullcontext()

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[bool]:
        """Every rank writes for itself."""
        return nullcontext(True)


WHOLE = Whole()
