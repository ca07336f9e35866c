"""The order of the tests."""

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
    """Put unit tests in front, then the longest files: no process is left with one at the end."""

    def place(item: pytest.Item) -> int:
        if "unit" in item.path.parts:
            return -1
        return LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)

    items.sort(key=place)
