"""The bar of a training, which the driver draws from the metrics that the workers write."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from magicdistill.data_pipeline import console
from magicdistill.data_pipeline.progress import BAR, Pace
from magicdistill.platform.runs.file_polling import Tail, polling
from magicdistill.platform.runs.row_files import parse_row
from magicdistill.platform.runs.run_directory import RunDirectory


@contextmanager
def cycle_bar(run: RunDirectory, num_cycles: int) -> Iterator[None]:
    """Show on a terminal how far the training is while the body runs.

    Elsewhere the run's progress lines say it.
    """
    if not console.is_terminal(sys.stderr):
        yield
        return
    tail, pace = Tail(run.metrics_path), Pace()
    bar = console.open_bar(num_cycles, BAR, "training")
    bar.set_postfix_str("the workers start")

    def look() -> None:
        nonlocal pace
        for row in filter(None, map(parse_row, tail.lines())):
            if row["step"] <= bar.n:  # the group of workers started again
                pace = Pace()
            pace.add(row["seconds_per_cycle"])
            bar.n = row["step"]
            bar.set_postfix_str(pace.describe(num_cycles - bar.n))

    try:
        with polling(look, 0.2, "drawing the bar"):
            yield
    finally:
        console.close_bar(bar)
