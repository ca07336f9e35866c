"""The scorers that a recipe can name; another one is a file here and a line in this list."""

from typing import Annotated, get_args

from pydantic import Field

from magicdistill.data_pipeline.scorers.aesthetics import Aesthetics
from magicdistill.data_pipeline.scorers.black import Black
from magicdistill.data_pipeline.scorers.blur import Blur
from magicdistill.data_pipeline.scorers.embedding import Embedding
from magicdistill.data_pipeline.scorers.exposure import Exposure
from magicdistill.data_pipeline.scorers.faces import Faces
from magicdistill.data_pipeline.scorers.frozen import Frozen
from magicdistill.data_pipeline.scorers.letterbox import Letterbox
from magicdistill.data_pipeline.scorers.phash import PHash
from magicdistill.data_pipeline.scorers.safety import Safety
from magicdistill.data_pipeline.scorers.text import Text

Kinds = (
    # Cheap ones, taken while shots are searched for.
    Black
    | Blur
    | Exposure
    | Frozen
    | Letterbox
    # Costly ones, taken of clips that the policy does not already reject.
    | PHash
    | Faces
    | Text
    | Safety
    | Embedding
    | Aesthetics
)

AnyScorer = Annotated[Kinds, Field(discriminator="kind")]

SCORES: dict[str, tuple[str, ...]] = {"motion": ("px",)} | {
    kind.model_fields["kind"].default: kind.SCORES for kind in get_args(Kinds)
}
"""Names of the numbers that each scorer takes."""
