"""Time lines: traces against closed forms, what waits for what, and published times."""

from dataclasses import replace

import pytest

from magicdistill.models.methods.dmd import DmdMethod
from magicdistill.models.methods.forward_passes import ForwardPass, Update
from magicdistill.models.networks.backbones.base import Sample
from magicdistill.models.networks.backbones.costs import Gradient, Part
from magicdistill.models.networks.backbones.hunyuan_video.shapes import HunyuanVideoConfig
from magicdistill.models.networks.config import AttentionKernel, KernelsConfig
from magicdistill.models.networks.presets import PRESETS
from magicdistill.platform.config.sections import GpuName
from magicdistill.platform.planning.flops import operations
from magicdistill.platform.planning.gpu_rates import (
    ATTENTION,
    GPUS,
    LINEAR_SHARE,
    MEMORY_SHARE,
    Rates,
    network_of,
)
from magicdistill.platform.planning.time_line import (
    IN_TURN,
    Sharding,
    TimeLine,
    forward_seconds,
    time_line,
)
from magicdistill.platform.planning.traces import trace_of

RECOMPUTED = KernelsConfig(recompute_blocks="full")
MAGIC141 = Sample(PRESETS["magic141-13b"].transformer, 34, 88, 90, lora_rank=128)
SHARED = replace(MAGIC141, sequence_parallel=8)
GENERATOR = ForwardPass("generator", "", "weights")
WAN_14B = HunyuanVideoConfig(
    num_attention_heads=40,
    attention_head_dim=128,
    num_layers=1,
    num_single_layers=39,
    num_refiner_layers=2,
    rope_axes_dim=(16, 56, 56),
    text_embed_dim=4096,
    pooled_projection_dim=768,
    num_text_tokens=256,
)
"""As wide and deep as Wan 2.1 of 14B: 40 blocks of width 5120, here with 16B parameters."""


def rates(gpu: GpuName, kernel: AttentionKernel) -> Rates:
    found = GPUS[gpu]
    linear, memory = found.operations_per_s, found.memory_bytes_per_s
    return Rates(ATTENTION[gpu][kernel], LINEAR_SHARE * linear, MEMORY_SHARE * memory, "")


def cycle(num_ranks: int, stage: int = 3, sharding: Sharding | None = None) -> TimeLine:
    return time_line(
        [Update("generator", (GENERATOR,))],
        SHARED,
        rates("h100", "cudnn"),
        network_of("h100", num_ranks),
        sharding or Sharding(stage),
        RECOMPUTED,
    )


@pytest.mark.parametrize(
    ("role", "gradient", "blocks"),
    [
        ("generator", "none", "all"),
        ("generator", "weights", "all"),
        ("critic", "lora", "all"),
        ("critic", "inputs", "features"),
    ],
)
def test_a_trace_has_the_operations_of_the_closed_form(
    role: str, gradient: Gradient, blocks: Part
) -> None:
    step = ForwardPass(role, "", gradient, blocks=blocks)
    work = [step.work for step in trace_of(MAGIC141, step, RECOMPUTED).steps]
    counted = sum(w.linear + w.attention + w.attention_backward for w in work)
    assert counted == pytest.approx(operations(MAGIC141, step, recompute="full"), rel=0.05)


def test_a_trace_reduces_each_trained_parameter_once_and_gathers_all_three_times() -> None:
    steps = trace_of(SHARED, GENERATOR, RECOMPUTED).steps
    reduced = sum(sum(step.reduced) for step in steps)
    needed = sum(parameter.numel for step in steps for parameter in step.parameters)
    assert reduced == pytest.approx(12.82e9, rel=0.002)
    assert needed == pytest.approx(3 * reduced, rel=0.02), "forward, recomputation and backward"


def test_ranks_that_share_a_sample_trade_tokens_for_heads_and_back() -> None:
    forward = trace_of(SHARED, ForwardPass("generator", ""), RECOMPUTED).forward
    sent = sum(step.work.exchanged_bytes for step in forward)
    one = 2 * 67_320 / 8 * 3072 * 7 / 8  # bytes of queries, keys, values or outputs to 7 others
    assert sent == pytest.approx(60 * 4 * one, rel=0.02), "the text's outputs are the rest"


def test_kinds_that_follow_each_other_fill_the_time_line() -> None:
    line = cycle(40)
    assert sum(line.of(kind) for kind in IN_TURN) == pytest.approx(line.seconds)
    for update in line.updates:
        ends = [span.end_s for span in update.spans if span.kind in IN_TURN]
        assert ends == sorted(ends)


def test_gathers_are_hidden_on_a_fast_network_and_waited_for_on_a_slow_one() -> None:
    fast = cycle(40)
    assert fast.of("gather") > 0.2 and fast.hidden > 0.95
    slow = time_line(
        [Update("generator", (GENERATOR,))],
        SHARED,
        rates("h100", "cudnn"),
        network_of("h100", 40)._replace(node_bytes_per_s=1e9),
        Sharding(3),
        RECOMPUTED,
    )
    assert slow.of("waiting") > 50 and slow.hidden < 0.5
    computed = ("attention", "linear", "other")
    assert [slow.of(k) for k in computed] == pytest.approx([fast.of(k) for k in computed])


def test_without_prefetching_every_gather_is_waited_for() -> None:
    line = cycle(40, sharding=Sharding(3, prefetch_bucket_size=0, max_reuse_distance=0))
    assert line.of("waiting") >= line.of("gather")
    assert line.gathered_bytes == pytest.approx(2 * 3 * 12.82e9, rel=0.03)


def test_whole_parameters_are_not_gathered() -> None:
    whole, sharded = cycle(8, stage=2), cycle(8, stage=3)
    assert not whole.gathered_bytes, "updated weights are shared out"
    assert sharded.gathered_bytes == pytest.approx(2 * 2 * 12.82e9, rel=0.05)
    assert whole.of("gather") > 0
    kept = cycle(8, sharding=Sharding(3, persistence_threshold=10**6))
    assert kept.gathered_bytes < sharded.gathered_bytes


@pytest.mark.parametrize(
    ("kernel", "published_s"), [("flash", 1746.5 / 100), ("flash3", 37.87 / 3)]
)
def test_a_forward_of_14b_takes_about_what_fastvideo_publishes(
    kernel: AttentionKernel, published_s: float
) -> None:
    """On one H200 at 81 frames of 720 x 1280: 50 guided steps, and 3 steps."""
    planned = forward_seconds(Sample(WAN_14B, 21, 90, 160), rates("h200", kernel))
    assert 0.8 < planned / published_s < 1.1


def test_28_guided_steps_take_about_the_papers_10_minutes() -> None:
    planned = 56 * forward_seconds(replace(MAGIC141, lora_rank=0), rates("h100", "flash"))
    assert 0.9 < planned / 600 < 1.2


def dmd(sample: Sample, gpu: GpuName, steps: int) -> float:
    """Return the seconds of a step: a critic's update, and a fifth of the generator's."""
    values = {"sampler": {"name": "euler", "num_steps": steps}, "num_fake_updates": 5}
    values |= {"name": "dmd", "real_guidance": 3.5, "share_rollout": False}
    line = time_line(
        DmdMethod.model_validate(values).cycle_updates(embeds=False),
        sample,
        rates(gpu, "flash" if gpu == "h100" else "cudnn"),
        network_of(gpu, 64),
        Sharding(3),
        RECOMPUTED,
    )
    return line.seconds / 5


def test_rollouts_of_a_drawn_length_take_their_mean_time() -> None:
    """Between a whole number of steps and the next, for 2.5 forwards of a critic's update."""

    def seconds(repeats: float) -> float:
        critic = ForwardPass("critic", "fake score", "lora")
        forwards = (ForwardPass("generator", "rollout", repeats=repeats), critic)
        updates = [Update("critic", forwards, times=5)]
        network = network_of("h100", 40)
        return time_line(
            updates, SHARED, rates("h100", "cudnn"), network, Sharding(3), RECOMPUTED
        ).seconds

    two, three = seconds(2), seconds(3)
    assert two < three and seconds(2.5) == pytest.approx((two + three) / 2)


def test_published_steps_of_14b_on_64_gpus_take_longer_than_planned() -> None:
    """The plan is a lower bound; docs/operations.md says what is unlike."""
    fastvideo = Sample(WAN_14B, 16, 56, 104, sequence_parallel=4, lora_rank=16)
    assert 0.15 < 4 * dmd(fastvideo, "h200", 1) / 62 < 0.6, "4 micro-batches"
    self_forcing_plus = Sample(WAN_14B, 21, 60, 104, lora_rank=16)
    assert 0.3 < dmd(self_forcing_plus, "h100", 4) / 86 < 1
