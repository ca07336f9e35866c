"""The training loop: cycles, updates of roles and accumulation steps. It sees no formula."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed as dist

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.objectives.types import Method
from magicdistill.models.profiling import StepTimer, span
from magicdistill.platform.cluster import ranks
from magicdistill.platform.data.batches import Batches
from magicdistill.platform.engines.ema import Ema
from magicdistill.platform.engines.engine import Engine
from magicdistill.platform.training.health import UnhealthyError

Metrics = dict[str, float]
AfterCycle = Callable[[int, Metrics], None]
"""Called after a cycle with the number of finished cycles and the cycle's mean metrics."""


class Loop:
    """Runs cycles of a method; every rank runs the same updates."""

    def __init__(
        self,
        method: Method,
        engines: Mapping[str, Engine],
        batches: Batches,
        *,
        seed: int,
        num_micro_batches: int,
        ema: Ema | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.method, self.engines, self.batches = method, engines, batches
        self.seed, self.num_micro_batches = seed, num_micro_batches
        self.ema, self.device = ema, device
        self.step_timer = StepTimer(device)

    def run(self, start: int, stop: int, callbacks: Iterable[AfterCycle]) -> None:
        """Run cycles start .. stop - 1; raises UnhealthyError as `cycle` does."""
        callbacks = tuple(callbacks)
        with self.step_timer.running():
            for cycle in range(start, stop):
                metrics = self.cycle(cycle)
                for callback in callbacks:
                    callback(cycle + 1, metrics)

    def cycle(self, cycle: int) -> Metrics:
        """Give each role its updates; return every loss term's mean over updates and ranks.

        Raises UnhealthyError on all ranks where a term or a gradient is no finite number on one.
        """
        sums: dict[str, list[torch.Tensor]] = {}
        roles = self.method.updates(cycle)
        for update, role in enumerate(roles):
            step = cycle if self.method.shares_batch else cycle * len(roles) + update
            lr = self.engines[role].lr
            norms = self._update(cycle, update, role, step, sums)
            sums.setdefault(f"{role}/lr", []).append(torch.tensor(lr))
            for name, norm in norms.items():
                sums.setdefault(f"{role}/{name}", []).append(torch.tensor(norm))
            if self.ema is not None and role == self.ema.role:
                self.ema.update(cycle)
        means = {name: torch.stack(values).mean() for name, values in sums.items()}
        with span("other ranks"):
            metrics = mean_over_ranks(means, self.device)
        _demand_finite(cycle, means, metrics)
        return metrics

    def _update(
        self, cycle: int, update: int, role: str, step: int, sums: dict[str, list[torch.Tensor]]
    ) -> dict[str, float]:
        engine = self.engines[role]
        networks = {name: other.module for name, other in self.engines.items()} | {role: engine}
        terms: list[tuple[str, torch.Tensor]] = []
        with self.method.prepared_for(role):
            for micro in range(self.num_micro_batches):
                with span("data"):
                    batch = self.batches(step, micro)
                with span("forward"):
                    rng = Rng(self.seed, cycle, update, batch.positions, self.device)
                    loss = self.method.loss(role, networks, batch, rng)
                with span("backward"):
                    engine.backward(loss.total, last=micro + 1 == self.num_micro_batches)
                terms += [(name, value.detach().float()) for name, value in loss.terms.items()]
        with span("update"):
            norms = engine.step()
        # read when the update is done: each earlier read would let the GPU run dry
        values = [value.to(self.device) for _, value in terms]
        for (name, _), value in zip(terms, torch.stack(values).cpu() if terms else (), strict=True):
            sums.setdefault(f"{role}/{name}", []).append(value)
        return norms


def num_steps(method: Method, num_cycles: int) -> int:
    """Return a bound on the accumulation windows that some cycles read."""
    return num_cycles * (1 if method.shares_batch else len(method.updates(num_cycles)))


def mean_over_ranks(values: dict[str, torch.Tensor], device: torch.device | str) -> Metrics:
    """Average scalars that every rank holds under the same names."""
    names = sorted(values)
    stacked = torch.stack([values[name] for name in names]).to(device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= dist.get_world_size()
    return dict(zip(names, stacked.tolist(), strict=True))


def _demand_finite(cycle: int, mine: Mapping[str, torch.Tensor], means: Metrics) -> None:
    """Raise where a value is no number; `mine` has this rank's in the order of the updates."""
    if all(map(math.isfinite, means.values())):
        return
    on_ranks = ranks.of_all([name for name, value in mine.items() if not value.isfinite()])
    first = next(name for name in mine if not math.isfinite(means[name]))
    found = [str(rank) for rank, names in enumerate(on_ranks) if first in names]
    role, _, term = first.partition("/")
    raise UnhealthyError(
        f"unhealthy at cycle {cycle + 1}: {term} of the {role} is {means[first]} "
        f"on rank(s) {', '.join(found)}"
    )
