"""The scorers that a recipe can name; another one is a file beside this one and a line here."""

from typing import Annotated

from magicdistill.data_pipeline.scorers.aesthetics import Aesthetics
from magicdistill.data_pipeline.scorers.base import Scorer
from magicdistill.data_pipeline.scorers.black import Black
from magicdistill.data_pipeline.scorers.blur import Blur
from magicdistill.data_pipeline.scorers.colour import Colour
from magicdistill.data_pipeline.scorers.embedding import Embedding
from magicdistill.data_pipeline.scorers.exposure import Exposure
from magicdistill.data_pipeline.scorers.faces import Faces
from magicdistill.data_pipeline.scorers.frozen import Frozen
from magicdistill.data_pipeline.scorers.letterbox import Letterbox
from magicdistill.data_pipeline.scorers.phash import PHash
from magicdistill.data_pipeline.scorers.safety import Safety
from magicdistill.data_pipeline.scorers.text import Text
from magicdistill.models.registry import Registry

SCORERS = Registry(
    "scorer",
    Scorer,
    # Cheap ones, taken while shots are searched for.
    Black,
    Blur,
    Colour,
    Exposure,
    Frozen,
    Letterbox,
    # Costly ones, taken of clips that the policy does not already reject.
    PHash,
    Faces,
    Text,
    Safety,
    Embedding,
    Aesthetics,
)

AnyScorer = Annotated[Scorer, SCORERS]
VIDEO_SCORES = ("hdr", "interlaced", "variable_rate")
"""What a file says of itself, 0 or 1: taken of every clip, without a scorer."""


def score_names() -> dict[str, tuple[str, ...]]:
    """Return the names of the numbers that each scorer takes."""
    return {"motion": ("px",), "video": VIDEO_SCORES} | {
        kind: cls.SCORES for kind in SCORERS.names() if (cls := SCORERS.get(kind))
    }
