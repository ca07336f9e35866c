"""A cycle of training on one rank as a time line: what it computes, exchanges and waits for.

The steps are those of `traces`, the seconds follow from the rates of kernels and network. Under
ZeRO-3 parameters are gathered as DeepSpeed 0.19 gathers them once it knows the order of the
modules: a module's own first, then those of the next modules, up to `prefetch_bucket_size` numbers
at each call and `max_live_parameters` in all, and they stay where they are used again within
`max_reuse_distance`. Gradients are reduced in buckets beside the backward. Both go over one network
in the order in which they are begun; the all-to-all of a sequence group holds up what is computed.

What is left out: what the processor takes to launch kernels, ranks that differ, and that exchanges
slow each other down where they share a link.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from magicdistill.models.methods.forward_passes import ForwardPass, Update
from magicdistill.models.networks.backbones.base import Sample
from magicdistill.models.networks.config import KernelsConfig
from magicdistill.platform.planning.gpu_rates import Network, Rates
from magicdistill.platform.planning.traces import Parameter, Step, Trace, Work, trace_of

Kind = Literal["attention", "linear", "other", "exchange", "waiting", "gather", "reduce"]
"""What a rank does. The first five follow each other: three kinds of computation, the all-to-all of
a sequence group, and waiting for weights or gradients. The last two go on beside them."""
IN_TURN: tuple[Kind, ...] = ("attention", "linear", "other", "exchange", "waiting")
BESIDE: tuple[Kind, ...] = ("gather", "reduce")
OPTIMIZER_BYTES = 34
"""Bytes that AdamW and clipping move for each trained number: weights, gradient and both moments in
float32, the first read twice, and the rounded weights."""


@dataclass(frozen=True)
class Sharding:
    """What is sharded over the ranks, and DeepSpeed's limits in numbers of parameters."""

    stage: int
    """Of ZeRO; 0 also stands for plain data parallelism."""
    parameter_bytes: int = 2
    gradient_bytes: int = 4
    """Bytes of a number that is reduced."""
    reduce_bucket: int = 250_000_000
    prefetch_bucket_size: int = 50_000_000
    max_live_parameters: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    persistence_threshold: int = 0
    """Parameters that are smaller stay whole."""


@dataclass(frozen=True)
class Span:
    """Something that a rank does from one time to another, in seconds from the beginning."""

    kind: Kind
    start_s: float
    end_s: float


@dataclass
class Lanes:
    """What one update does, kind by kind."""

    name: str
    times: float = 1
    """Number of such updates in a cycle; of drawn ones, on average."""
    spans: list[Span] = field(default_factory=list)
    gathers: list[float] = field(default_factory=list)
    """Bytes of each gather, in order: of whole parameters."""
    end_s: float = 0.0

    def seconds(self, kind: Kind) -> float:
        """Return the seconds of one kind."""
        return math.fsum(s.end_s - s.start_s for s in self.spans if s.kind == kind)


@dataclass(frozen=True)
class TimeLine:
    """A cycle: each of its updates once, and twice where the number of its passes is drawn."""

    updates: tuple[Lanes, ...]

    @property
    def seconds(self) -> float:
        """Seconds of a cycle."""
        return sum(update.times * update.end_s for update in self.updates)

    def of(self, kind: Kind) -> float:
        """Return the seconds of a cycle that one kind takes."""
        return sum(update.times * update.seconds(kind) for update in self.updates)

    @property
    def gathered_bytes(self) -> float:
        """Bytes of whole parameters that a rank gathers in a cycle."""
        return sum(update.times * sum(update.gathers) for update in self.updates)

    @property
    def hidden(self) -> float:
        """The share of gathers and reductions that goes on beside the computation."""
        beside = sum(self.of(kind) for kind in BESIDE)
        return 1 - self.of("waiting") / beside if beside else 1.0


def time_line(
    updates: Iterable[Update],
    sample: Sample,
    rates: Rates,
    network: Network,
    sharding: Sharding,
    kernels: KernelsConfig,
    *,
    num_samples: int = 1,
    num_micro_batches: int = 1,
) -> TimeLine:
    """Return the time line of a cycle of these updates, on a rank that is like all others.

    `num_samples` are those of one micro-batch, which the ranks of a sequence group share.
    """
    found = []
    for update in itertools.chain.from_iterable(map(lengths, updates)):
        run = _Run(Lanes(update.name, update.times), rates, network, sharding, sample)
        passes = [
            Pass(step.role, trace_of(sample, step, kernels), step.samples * num_samples)
            for step in update.forwards
        ]
        for _ in range(num_micro_batches):
            run.follow(in_order(passes))
        run.update()
        found.append(run.lanes)
    return TimeLine(tuple(found))


class Length(NamedTuple):
    """An update with so many passes, and how often a cycle has it."""

    name: str
    times: float
    forwards: list[ForwardPass]


def lengths(update: Update) -> Iterator[Length]:
    """Yield an update with each pass as often as it is run.

    Where a number is drawn, these are the update with the mean rounded down and rounded up, in the
    shares that give the mean.
    """
    longer = max(step.repeats % 1 for step in update.forwards)
    for rounded, share in ((math.floor, 1 - longer), (math.ceil, longer)):
        if share:
            forwards = [step for step in update.forwards for _ in range(rounded(step.repeats))]
            yield Length(update.name, share * update.times, forwards)


class Pass(NamedTuple):
    """A pass through the network of a role."""

    role: str
    trace: Trace
    num_samples: int


def in_order(passes: Sequence[Pass]) -> list[tuple[Pass, Step]]:
    """Return the steps of all forwards and then of their backwards, last pass first."""
    forwards = [(each, step) for each in passes for step in each.trace.forward]
    backwards = [(each, step) for each in reversed(passes) for step in each.trace.backward]
    return forwards + backwards


def compute_seconds(work: Work, rates: Rates) -> dict[Kind, float]:
    """Return the seconds of the three kinds of computation."""
    return {
        "attention": work.attention / rates.attention.forward
        + work.attention_backward / rates.attention.backward,
        "linear": work.linear / rates.linear,
        "other": work.moved_bytes / rates.memory,
    }


def forward_seconds(sample: Sample, rates: Rates) -> float:
    """Return the seconds of a forward without a gradient on one GPU that holds the network."""
    steps = trace_of(sample, ForwardPass("", ""), KernelsConfig()).forward
    return sum(sum(compute_seconds(step.work, rates).values()) for step in steps)


class _Run:
    """One update as time passes."""

    def __init__(
        self, lanes: Lanes, rates: Rates, network: Network, sharding: Sharding, sample: Sample
    ) -> None:
        self.lanes, self.rates, self.network, self.sharding = lanes, rates, network, sharding
        self.group = sample.sequence_parallel
        self.free_s = 0.0
        """When the network has done all that it was given."""
        self.in_bucket = 0
        self.trained = 0

    def follow(self, steps: Sequence[tuple[Pass, Step]]) -> None:
        """Run a forward and a backward; each role is an engine that gathers for itself."""
        prefetchers = {
            role: Prefetcher([step for each, step in steps if each.role == role], self.sharding)
            for role in {each.role for each, _ in steps}
        }
        arrivals: dict[tuple[str, Parameter], float] = {}
        for (role, _, num_samples), step in steps:
            prefetcher = prefetchers[role]
            needed, ahead = prefetcher.fetch()
            self._gather(role, needed, arrivals)
            self._wait(max((arrivals.pop((role, p), 0.0) for p in step.parameters), default=0.0))
            self._gather(role, ahead, arrivals)
            self._compute(step.work, num_samples)
            for numel in step.reduced:
                self._reduce(numel)
            prefetcher.release()
        self._flush()
        self._wait(self.free_s)
        self.trained = sum(sum(step.reduced) for _, step in steps)

    def update(self) -> None:
        """Let the optimiser update what is trained, and share it out where all ranks hold it."""
        stage, ranks = self.sharding.stage, self.network.num_ranks
        own = self.trained / (ranks if stage else 1)
        self._spend("other", OPTIMIZER_BYTES * own / self.rates.memory)
        if stage in (1, 2):
            size = self.sharding.parameter_bytes * self.trained
            self._send("gather", self.network.gather_s(size))
            self._wait(self.free_s)

    def _gather(
        self,
        role: str,
        parameters: Sequence[Parameter],
        arrivals: dict[tuple[str, Parameter], float],
    ) -> None:
        if not parameters:
            return
        size = self.sharding.parameter_bytes * sum(p.numel for p in parameters)
        self._send("gather", self.network.gather_s(size))
        self.lanes.gathers.append(size)
        arrivals |= dict.fromkeys([(role, p) for p in parameters], self.free_s)

    def _compute(self, work: Work, count: int) -> None:
        for kind, seconds in compute_seconds(work, self.rates).items():
            self._spend(kind, count * seconds)
        if work.num_exchanges:
            each = count * work.exchanged_bytes / work.num_exchanges
            self._spend("exchange", work.num_exchanges * self.network.exchange_s(each, self.group))

    def _reduce(self, numel: int) -> None:
        limit = self.sharding.reduce_bucket if self.sharding.stage else math.inf
        if self.in_bucket and self.in_bucket + numel > limit:
            self._flush()
        self.in_bucket += numel

    def _flush(self) -> None:
        if self.in_bucket:
            seconds = self.network.gather_s(self.sharding.gradient_bytes * self.in_bucket)
            self._send("reduce", seconds * (1 if self.sharding.stage else 2))  # a whole all-reduce
            self.in_bucket = 0

    def _send(self, kind: Kind, seconds: float) -> None:
        start_s = max(self.lanes.end_s, self.free_s)
        self.free_s = start_s + seconds
        if seconds:
            self.lanes.spans.append(Span(kind, start_s, self.free_s))

    def _wait(self, until_s: float) -> None:
        self._spend("waiting", max(0.0, until_s - self.lanes.end_s))

    def _spend(self, kind: Kind, seconds: float) -> None:
        if seconds:
            end_s = self.lanes.end_s + seconds
            self.lanes.spans.append(Span(kind, self.lanes.end_s, end_s))
            self.lanes.end_s = end_s


class Prefetcher:
    """Which parameters DeepSpeed's ZeRO-3 gathers at each step of a known trace, and which it keeps
    whole.

    Call `fetch` before each step and `release` after it. Below stage 3 nothing is gathered.
    """

    def __init__(self, steps: Sequence[Step], sharding: Sharding) -> None:
        self.sharding = sharding
        self.steps = [
            [p for p in step.parameters if p.numel > sharding.persistence_threshold]
            if sharding.stage == 3
            else []
            for step in steps
        ]
        self.queue = [(p, at) for at, step in enumerate(self.steps) for p in step]
        self.position, self.at = 0, -1
        self.whole: set[Parameter] = set()
        """Gathered, or being gathered."""
        self.live = 0
        """Numbers in them."""
        self.fetched_for: dict[Parameter, int] = {}
        """The last step for which the queue has passed a parameter."""
        self.numel_before = [0]
        for step in self.steps:
            self.numel_before.append(self.numel_before[-1] + sum(p.numel for p in step))
        self.next_use = self._next_uses()

    def fetch(self) -> tuple[list[Parameter], list[Parameter]]:
        """Go to the next step; return what it gathers for itself and what for later steps."""
        self.at += 1
        needed = [p for p in self.steps[self.at] if p not in self.whole]
        self._take(needed)
        while self.position < len(self.queue) and self.queue[self.position][1] <= self.at:
            self._pass()
        room = self.sharding.max_live_parameters - self.live
        limit, ahead, numel = min(room, self.sharding.prefetch_bucket_size), [], 0
        while self.position < len(self.queue) and numel < limit:
            parameter = self._pass()
            if parameter not in self.whole:
                ahead.append(parameter)
                self._take([parameter])
                numel += parameter.numel
        return needed, ahead

    def release(self) -> None:
        """Let go of the step's parameters, unless they are soon used again."""
        for parameter in self.steps[self.at]:
            again = self.next_use[self.at].get(parameter)
            is_near = again is not None and (
                self.numel_before[again] - self.numel_before[self.at + 1]
                < self.sharding.max_reuse_distance
            )
            if self.fetched_for[parameter] <= self.at and not is_near:
                self.whole.remove(parameter)
                self.live -= parameter.numel

    def _take(self, parameters: Sequence[Parameter]) -> None:
        self.whole.update(parameters)
        self.live += sum(p.numel for p in parameters)

    def _pass(self) -> Parameter:
        parameter, at = self.queue[self.position]
        self.position += 1
        self.fetched_for[parameter] = max(at, self.fetched_for.get(parameter, -1))
        return parameter

    def _next_uses(self) -> list[dict[Parameter, int]]:
        """Return for each step when its parameters are used again."""
        found: list[dict[Parameter, int]] = []
        coming: dict[Parameter, int] = {}
        for at in reversed(range(len(self.steps))):
            found.append({p: coming[p] for p in self.steps[at] if p in coming})
            coming |= dict.fromkeys(self.steps[at], at)
        return found[::-1]
