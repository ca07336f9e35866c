"""The base of every configuration in the project."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen set of typed fields; an unknown key, infinity and NaN are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
