"""The planned gathers are DeepSpeed's own."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import multiprocessing

from magicdistill.models.methods.forward_passes import ForwardPass
from magicdistill.models.networks.backbones.base import Sample
from magicdistill.platform.planning.time_line import Prefetcher, Sharding
from magicdistill.platform.planning.traces import Parameter, trace_of
from tests.integration.platform.planning.gathering_job import KERNELS, LIMITS, SHAPES, Notes, run


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Notes]:
    meeting: Path = tmp_path_factory.mktemp("gathers") / "meeting"
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(run, (meeting, results), nprocs=1)
    return dict(results.get() for _ in LIMITS)


def name_in_network(parameter: Parameter) -> str:
    number, _, name = parameter.name.rpartition(": ")
    return re.sub(r"(transformer_blocks)\.\d+", rf"\1.{number}", name)


def names(parameters: list[Parameter]) -> list[str]:
    return [name_in_network(parameter) for parameter in parameters]


def planned(limits: dict[str, int]) -> Iterator[list[str]]:
    sample = Sample(SHAPES, 3, 12, 12, activation_bytes=4)
    steps = trace_of(sample, ForwardPass("generator", "", "weights"), KERNELS).steps
    prefetcher = Prefetcher(steps, Sharding(3, **limits))
    for _ in steps:
        yield from (sorted(names(group)) for group in prefetcher.fetch() if group)
        prefetcher.release()


def test_modules_need_their_parameters_in_the_traced_order(noted: dict[str, Notes]) -> None:
    sample = Sample(SHAPES, 3, 12, 12, activation_bytes=4)
    steps = trace_of(sample, ForwardPass("generator", "", "weights"), KERNELS).steps
    traced = [names(list(step.parameters)) for step in steps if step.parameters]
    for notes in noted.values():
        assert [needed for needed in notes["needed"] if needed] == traced


@pytest.mark.parametrize("name", LIMITS)
def test_what_is_gathered_together_and_when_is_planned(noted: dict[str, Notes], name: str) -> None:
    assert [group for group in noted[name]["gathered"] if group] == list(planned(LIMITS[name]))
