"""A scorer of one's own: registered, named in a recipe's measures, looking at a real clip."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import ValidationError

from magicdistill.data_pipeline.config import Measures, Policy
from magicdistill.data_pipeline.scorers.base import Frame, RateScorer, Values
from magicdistill.data_pipeline.scorers.registry import SCORERS, score_names
from magicdistill.data_pipeline.sources.portrait_world.world import render_clip
from tests.registries import registries_restored


class Redness(RateScorer):
    """Share of red in the picture."""

    kind: Literal["redness"] = "redness"
    MODEL: ClassVar = "red over the sum of all colours"
    SCORES: ClassVar = ("share",)

    def look(self, frame: Frame, last: Frame | None) -> float:
        return float(frame.rgb[..., 0].sum() / frame.rgb.sum())

    def summary(self, looks: Sequence[float], step_s: float) -> Values:
        return {"share": sum(looks) / len(looks)}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registries_restored():
        SCORERS.register(Redness)
        yield


def test_measures_name_it_and_it_scores_a_clip(tmp_path: Path) -> None:
    (scorer,) = Measures.model_validate({"scorers": [{"kind": "redness"}]}).scorers
    clip = render_clip(3, num_frames=25)
    looks = [scorer.look(Frame(clip[i]), None) for i in scorer.indices(0, 25, 24.0)]
    assert len(looks) == 3
    share = scorer.summary(looks, 0.5)["share"]
    assert share == pytest.approx(clip[[0, 12, 24], ..., 0].sum() / clip[[0, 12, 24]].sum(), 0.05)


def test_its_version_follows_its_settings() -> None:
    assert Redness().version != Redness(sampling_fps=4.0).version
    assert Redness().describe()["model"] == "red over the sum of all colours"


def test_policies_know_its_scores() -> None:
    assert score_names()["redness"] == ("share",)
    assert Policy.model_validate({"limits": {"all": {"redness.share": {"max": 0.9}}}})
    with pytest.raises(ValidationError, match=r"'redness\.amount' is none of redness\.share"):
        Policy.model_validate({"limits": {"all": {"redness.amount": {"max": 0.9}}}})
