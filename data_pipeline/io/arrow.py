"""Arrow's functions over columns."""

from typing import Any

import pyarrow.compute

pc: Any = pyarrow.compute
"""They are made when the module is imported, so that type checkers know none of them."""
