"""The longest files begin first, so that no process is left with one at the end."""

import pytest

LONGEST = (
    "test_distill.py",
    "test_survival_layouts.py",
    "test_curate.py",
    "test_streams.py",
    "test_planning.py",
    "test_health.py",
    "test_exams.py",
    "test_zero3.py",
    "test_curate_scores.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put them in front; the others stay in their order."""
    items.sort(key=lambda i: LONGEST.index(i.path.name) if i.path.name in LONGEST else len(LONGEST))
