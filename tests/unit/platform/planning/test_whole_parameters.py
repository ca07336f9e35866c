"""Parameters that stay whole under ZeRO-3, and what lies in host memory for a checkpoint."""

from itertools import pairwise

from magicdistill.platform.config.sections import DeepSpeedEngineConfig
from magicdistill.platform.planning.gpu_rates import GIB
from magicdistill.platform.planning.memory import Parameters, copy_row, engine_rows, total
from magicdistill.platform.planning.time_line import Prefetcher, Sharding
from magicdistill.platform.planning.traces import Parameter, Step

SIZES = (3_000, 400_000, 9_000_000)
THRESHOLDS = (0, 2_999, 3_000, 400_000, 9_000_000)


def gathered(threshold: int) -> list[Parameter]:
    """Return what a forward and a backward of three blocks gather, with no reuse."""
    blocks = [tuple(Parameter(f"{n}: {size}", size) for size in SIZES) for n in range(3)]
    steps = [Step(block, None) for block in blocks + blocks[::-1]]
    sharding = Sharding(3, max_reuse_distance=0, persistence_threshold=threshold)
    prefetcher, found = Prefetcher(steps, sharding), list[Parameter]()
    for _ in steps:
        for some in prefetcher.fetch():
            found += some
        prefetcher.release()
    return found


def kept_bytes(threshold: int) -> float:
    """Return what the engine of a frozen role holds on one of eight ranks."""
    part = Parameters("real_score", "frozen base", sum(SIZES), 0, SIZES)
    engine = DeepSpeedEngineConfig(zero_stage=3, precision="bf16", whole_numel=threshold)
    return total(engine_rows([part], engine, 8))


def test_a_larger_threshold_never_gathers_more_and_costs_more_bytes() -> None:
    numbers = [sum(p.numel for p in gathered(threshold)) for threshold in THRESHOLDS]
    sizes = [kept_bytes(threshold) for threshold in THRESHOLDS]
    assert all(more >= less for more, less in pairwise(numbers))
    assert all(less <= more for less, more in pairwise(sizes))
    assert numbers[0] > numbers[2] > numbers[3] > numbers[4] == 0
    assert sizes[0] == sizes[1] and sizes[2:] == [
        sizes[0] + 2 * sum(size for size in SIZES if size <= threshold)
        for threshold in THRESHOLDS[2:]
    ]


def test_a_parameter_of_the_thresholds_size_is_never_gathered() -> None:
    assert {p.numel for p in gathered(400_000)} == {9_000_000}


def test_a_rank_holds_its_share_of_a_checkpoint_in_host_memory() -> None:
    row = copy_row(160 * GIB, 40)
    assert (row.bytes, row.place) == (4 * GIB, "host")
