"""The base of every configuration in the project."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen set of typed fields; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
