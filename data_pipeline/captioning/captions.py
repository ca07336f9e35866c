"""The `captions` section of a recipe: who writes the captions that clips lack, and how."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from magicdistill.data_pipeline.captioning.base import CaptionWriter, Task
from magicdistill.data_pipeline.captioning.endpoint import Endpoint
from magicdistill.data_pipeline.captioning.local_model import LocalModel
from magicdistill.data_pipeline.captioning.text_measures import MEASURES
from magicdistill.data_pipeline.rows import digest
from magicdistill.data_pipeline.scorers.base import Scorer
from magicdistill.models.config import Config
from magicdistill.models.registry import Registry

CAPTION = "caption"
"""Name under which the ledger has captions: `caption.words` and the other measures are scores, the
text is what a scorer may store beside its scores."""
CAPTION_SCORES = (*MEASURES, "cut")
PROMPT = (
    "These are frames of one video in their order. Describe the video in one paragraph of plain "
    "English: who or what is seen, how they look, what moves and how, the place, the light and the "
    "camera. Begin with the subject, and do not speak of frames."
)

WRITERS = Registry("writer of captions", CaptionWriter, LocalModel, Endpoint)


class Captions(Config):
    """Who writes captions, from which frames and on which words, and what that costs."""

    writer: Annotated[CaptionWriter, WRITERS]
    existing: Literal["keep", "replace"] = "keep"
    """What becomes of a caption that the source's manifest has: `keep` trains on it and writes only
    those that are missing, `replace` writes all."""
    prompt: str = Field(default=PROMPT, min_length=1)
    """What the writer is told. With other words all captions are written again."""
    num_frames: int = Field(default=4, ge=1)
    """Frames of a clip that the writer sees, each the middle of an equal part of the clip."""
    long_side: int = Field(default=512, ge=16)
    """Largest long side in pixels of the frames that the writer sees."""
    max_tokens: int = Field(default=256, ge=1)
    """Tokens after which a caption is cut off, which the policy refuses. With another number all
    captions are written again."""
    price_in: float | None = Field(default=None, ge=0)
    """Price of a million tokens that are read, in any currency; null counts no money."""
    price_out: float | None = Field(default=None, ge=0)
    """Price of a million tokens that are written, in the same currency."""

    @property
    def task(self) -> Task:
        """What is asked about every clip."""
        return Task(self.prompt, self.max_tokens)


class CaptionScorer(Scorer):
    """Captions as the ledger sees them: a scorer that measures a text and stores it."""

    kind: Literal["caption"] = "caption"
    captions: Captions
    MODEL: ClassVar = "the writer that the recipe names"
    SCORES: ClassVar = CAPTION_SCORES

    @property
    def version(self) -> str:
        """Name of all that decides what is written; the price and the place of a server do not.

        Raises:
            FileNotFoundError: if the recipe names a folder in which no model is.
        """
        return digest(self.kind, self.CODE, self.described())[:12]

    def described(self) -> Mapping[str, object]:
        """Return what decides what is written."""
        captions = self.captions
        settings = captions.model_dump(include={"prompt", "num_frames", "long_side", "max_tokens"})
        return {"writer": captions.writer.kind, **captions.writer.identity(), **settings}

    def describe(self) -> dict[str, object]:
        """Return writer, model, prompt and version, as stored beside the scores."""
        return {"scorer": self.kind, "version": self.version, "code": self.CODE, **self.described()}
