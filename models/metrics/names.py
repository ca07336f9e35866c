"""The names of all metrics, in the order of tables; importing it costs nothing."""

DIMENSIONS = (
    "i2v_subject",
    "subject_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "temporal_flickering",
)
"""VBench's, in the order of the papers' columns; 1 is best."""
DISTANCES = ("fid", "fvd", "proxy_frechet_distance")
"""Between all generated clips and all real ones."""
RATIOS = ("dynamic_degree_proxy", "flicker_proxy")
"""Of the mean over generated clips to that over real ones; 1 is real."""
METRICS = (*DIMENSIONS, "average", "fid", "fvd", "lpips", "proxy_frechet_distance", *RATIOS)
COMPARING = (*DISTANCES, "lpips", *RATIOS)
"""Metrics that need real clips, not their first frames alone."""
ARROWS: dict[str, str] = {
    **dict.fromkeys((*DIMENSIONS, "average"), "↑"),
    **dict.fromkeys((*DISTANCES, "lpips"), "↓"),
    **dict.fromkeys(RATIOS, "→ 1"),
}
"""Where better values are."""
TITLES = {
    "fid": "FID",
    "fvd": "FVD",
    "lpips": "LPIPS",
    "proxy_frechet_distance": "FD (proxy)",
    "dynamic_degree_proxy": "motion ÷ real (proxy)",
    "flicker_proxy": "flicker ÷ real (proxy)",
}


def title(metric: str) -> str:
    """Return a metric's name as tables print it."""
    return TITLES.get(metric, metric.replace("_", " "))
