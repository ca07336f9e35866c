"""All metrics, in the order of tables; another one is a file beside this one and a line here."""

from collections.abc import Collection
from typing import Literal

from magicdistill.models.metrics.columns.base import Arrow, Average, MetricBase
from magicdistill.models.metrics.columns.comparisons import (
    ContentDebiasedFvd,
    DynamicDegreeProxy,
    Fid,
    FlickerProxy,
    Fvd,
    Lpips,
    ProxyFrechetDistance,
)
from magicdistill.models.metrics.columns.kernel_distances import Cmmd, Kid, Kvd
from magicdistill.models.metrics.columns.vbench_dimensions import (
    AestheticQuality,
    DynamicDegree,
    I2vSubject,
    ImagingQuality,
    MotionSmoothness,
    SubjectConsistency,
    TemporalFlickering,
)
from magicdistill.models.registry import Registry

METRICS = Registry(
    "metric",
    MetricBase,
    # VBench's dimensions, in the order of the papers' columns.
    I2vSubject,
    SubjectConsistency,
    MotionSmoothness,
    DynamicDegree,
    AestheticQuality,
    ImagingQuality,
    TemporalFlickering,
    Average,
    Fid,
    Kid,
    Cmmd,
    Fvd,
    Kvd,
    ContentDebiasedFvd,
    Lpips,
    ProxyFrechetDistance,
    DynamicDegreeProxy,
    FlickerProxy,
    tag="name",
)
_OWN = METRICS.names()


def all_metrics() -> list[MetricBase]:
    """Return one instance of every registered metric, in the order of tables."""
    return [cls(name=name) for name in METRICS.names() if (cls := METRICS.get(name))]


def dimensions() -> tuple[str, ...]:
    """Return the metrics whose mean is `average`, in the order of tables."""
    return tuple(metric.name for metric in all_metrics() if metric.AVERAGED)


def comparing() -> tuple[str, ...]:
    """Return the metrics that need real clips, not their first frames alone."""
    return tuple(metric.name for metric in all_metrics() if metric.COMPARES)


def measured(counted: Collection[str]) -> list[MetricBase]:
    """Return the metrics to measure: those that count, and all that need no network."""
    return [metric for metric in all_metrics() if metric.NETWORK is None or metric.name in counted]


def added(counted: Collection[str]) -> list[MetricBase]:
    """Return those of `measured` that plugins have registered."""
    return [metric for metric in measured(counted) if metric.name not in _OWN]


def title(metric: str) -> str:
    """Return a metric's name as tables print it."""
    cls = METRICS.get(metric)
    return (cls and cls.TITLE) or metric.replace("_", " ")


def arrow(metric: str, default: Arrow | Literal[""] = "") -> str:
    """Return where a metric's better values are; the default for what is no metric of tables."""
    cls = METRICS.get(metric)
    return cls.ARROW if cls else default


def digits(metric: str) -> int:
    """Return how many decimals of a metric tables print."""
    cls = METRICS.get(metric)
    return cls.DIGITS if cls else MetricBase.DIGITS
