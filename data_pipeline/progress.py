"""Show how far a long stage has come."""

from collections.abc import Callable

from tqdm import tqdm

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, the number of items done and their total."""


class Bars:
    """One bar per stage on a terminal; nothing where standard error is a file."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move a stage's bar; it closes when the stage is complete."""
        if stage not in self._bars:
            self._bars[stage] = tqdm(total=total, desc=stage, unit="clip", disable=None)
        bar = self._bars[stage]
        bar.update(done - bar.n)
        if done >= total:
            self._bars.pop(stage).close()
