"""What all writers of captions share: the task, the answer, and the configuration's base."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import SecretStr

from magicdistill.data_pipeline.rows import Array
from magicdistill.models.config import Config
from magicdistill.models.paths import PathError

COSTS = ("tokens_in", "tokens_out", "requests", "seconds")
"""Names of what a caption costs, which is stored beside its measures."""
REFUSED = "refused"
"""Begins the reason of a failure that all other clips would have, too."""


class WriterError(PathError):
    """No caption can be written; the message has the writer's address, and the fix."""


@dataclass(frozen=True)
class Task:
    """What is asked about every clip."""

    prompt: str
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """A caption, or the reason why there is none, and what it cost."""

    text: str = ""
    failure: str = ""
    """Empty, or the reason; with `rows.UNREACHABLE` in front it may pass."""
    is_cut: bool = False
    """Whether the writer stopped at the largest number of tokens, inside a sentence perhaps."""
    tokens_in: int = 0
    tokens_out: int = 0
    requests: int = 0
    """Attempts, those that failed included."""
    seconds: float = 0.0
    """Time in which the writer worked on this clip, without pauses."""

    @property
    def costs(self) -> Mapping[str, float]:
        """Return the numbers of COSTS by name."""
        return {name: float(getattr(self, name)) for name in COSTS}


@runtime_checkable
class OpenWriter(Protocol):
    """A writer that is ready."""

    def write(self, clips: Iterable[Sequence[Array]]) -> Sequence[Answer]:
        """Return an answer for each clip, given as its frames, uint8 RGB (h, w, 3), in order."""
        ...


class CaptionWriter(Config):
    """Who writes captions: a model on this cluster, or a server."""

    kind: str
    """Name of the writer, which decides its other settings."""

    @property
    def num_gpus(self) -> float:
        """GPUs that each process reserves."""
        return 0.0

    def identity(self) -> Mapping[str, object]:
        """Return what decides, beside the task and the frames, what is written."""
        raise NotImplementedError

    def key(self) -> SecretStr | None:
        """Return the key that the writer asks for; raises WriterError if it is not there."""
        return None

    def demand_ready(self) -> None:
        """Raise WriterError if no caption can be written at present."""

    def open(self, task: Task, key: SecretStr | None) -> OpenWriter:
        """Return the writer, which takes a model's loading."""
        raise NotImplementedError
