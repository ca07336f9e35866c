"""Histograms of scores with their limits, as SVG."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from magicdistill.data_pipeline.ledger.calibration import Calibration, ScoreDistribution

COLOURS = {"portrait": "#3367a8", "general": "#c8792b", "anime": "#5b9a5e"}
NUM_BINS = 24


def histogram(distributions: Sequence[ScoreDistribution], calibration: Calibration) -> bytes:
    """Draw the histogram of one score: a colour for each mixture, a dashed line for each limit.

    Args:
        distributions: the same score in different mixtures.
        calibration: what the distributions are of, which counts the values.

    Returns:
        An SVG file.
    """
    bounds = [end for d in distributions for end in (d.limit.min, d.limit.max) if end is not None]
    least = min(distribution.quantiles[0] for distribution in distributions)
    most = max(distribution.quantiles[-1] for distribution in distributions)
    # A limit far beyond all values would squeeze them into one bar.
    near = [end for end in bounds if abs(end - np.clip(end, least, most)) <= 2 * (most - least)]
    edges = np.linspace(min([least, *near]), max([most, *near]), NUM_BINS + 1)
    if edges[0] == edges[-1]:
        edges = np.linspace(least - 1, least + 1, NUM_BINS + 2)
    counts = calibration.histogram(distributions[0].score, edges.tolist())
    middles = (edges[:-1] + edges[1:]) / 2
    with rc_context({"svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif"}):
        figure = Figure(figsize=(3.1, 1.7), layout="constrained")
        axes = figure.subplots()
        axes.hist(
            [middles for _ in distributions],
            bins=list(edges),
            weights=[counts[distribution.mixture] for distribution in distributions],
            stacked=True,
            color=[COLOURS[distribution.mixture] for distribution in distributions],
        )
        for distribution in distributions:
            for end in (distribution.limit.min, distribution.limit.max):
                if end in near:
                    axes.axvline(
                        end, color=COLOURS[distribution.mixture], linestyle="--", linewidth=1.2
                    )
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(nbins=4)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
