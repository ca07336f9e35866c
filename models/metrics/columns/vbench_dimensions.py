"""The seven dimensions of VBench, with the networks that they look through."""

from typing import Any, ClassVar, Literal

from magicdistill.models.metrics import weight_files
from magicdistill.models.metrics.columns.base import Clip, ScoreMetric


class I2vSubject(ScoreMetric):
    """How well the subject of the first frame is kept, in DINO features."""

    name: Literal["i2v_subject"] = "i2v_subject"
    NETWORK: ClassVar = weight_files.DINO
    AVERAGED: ClassVar = True

    def score(self, clip: Clip, network: Any) -> float:
        """Compare the frames with the real first frame and with each other."""
        import torch

        from magicdistill.models.metrics import preprocessing, vbench

        frames = torch.cat([clip.real[:1], clip.frames])
        features = preprocessing.in_parts(
            lambda part: network(preprocessing.for_i2v_subject(part)), frames
        )
        return vbench.i2v_subject(features[1:], features[0])


class SubjectConsistency(ScoreMetric):
    """How well the subject stays the same, in DINO features."""

    name: Literal["subject_consistency"] = "subject_consistency"
    NETWORK: ClassVar = weight_files.DINO
    AVERAGED: ClassVar = True

    def score(self, clip: Clip, network: Any) -> float:
        """Compare each frame with the first and with the one before."""
        from magicdistill.models.metrics import preprocessing, vbench

        features = preprocessing.in_parts(
            lambda part: network(preprocessing.for_subject(part)), clip.frames
        )
        return vbench.subject_consistency(features)


class MotionSmoothness(ScoreMetric):
    """How well frames are foretold by their neighbours, with AMT."""

    name: Literal["motion_smoothness"] = "motion_smoothness"
    NETWORK: ClassVar = weight_files.AMT
    AVERAGED: ClassVar = True

    def score(self, clip: Clip, network: Any) -> float:
        """Compare odd frames with what is made of their even neighbours."""
        from magicdistill.models.metrics import vbench

        return vbench.motion_smoothness(clip.frames, network)


class DynamicDegree(ScoreMetric):
    """Whether anything moves, by RAFT's flow."""

    name: Literal["dynamic_degree"] = "dynamic_degree"
    NETWORK: ClassVar = weight_files.RAFT
    AVERAGED: ClassVar = True

    def score(self, clip: Clip, network: Any) -> float:
        """Return 1 where the clip moves, else 0."""
        from magicdistill.models.metrics import vbench

        return vbench.dynamic_degree(clip.frames, clip.fps, network)


class AestheticQuality(ScoreMetric):
    """LAION's aesthetic score of the frames, of 1."""

    name: Literal["aesthetic_quality"] = "aesthetic_quality"
    NETWORK: ClassVar = weight_files.AESTHETICS
    AVERAGED: ClassVar = True

    def score(self, clip: Clip, network: Any) -> float:
        """Return the mean over frames."""
        from magicdistill.models.metrics import preprocessing, vbench

        scores = preprocessing.in_parts(
            lambda part: network(preprocessing.for_clip(part)), clip.frames
        )
        return vbench.aesthetic_quality(scores)


class ImagingQuality(ScoreMetric):
    """MUSIQ's score of the frames, of 1."""

    name: Literal["imaging_quality"] = "imaging_quality"
    NETWORK: ClassVar = weight_files.MUSIQ
    AVERAGED: ClassVar = True

    def score(self, clip: Clip, network: Any) -> float:
        """Return the mean over frames."""
        import torch

        from magicdistill.models.metrics import preprocessing, vbench

        images = (preprocessing.for_musiq(frame) for frame in clip.frames.split(1))
        scores = torch.stack([network(image).reshape(()) for image in images])
        return vbench.imaging_quality(scores)


class TemporalFlickering(ScoreMetric):
    """How little neighbouring frames differ; it needs no network."""

    name: Literal["temporal_flickering"] = "temporal_flickering"
    AVERAGED: ClassVar = True

    def score(self, clip: Clip, network: Any) -> float:
        """Return 1 for a still clip."""
        from magicdistill.models.metrics import vbench

        return vbench.temporal_flickering(clip.frames)
