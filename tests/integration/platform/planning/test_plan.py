"""Plans: closed forms against what torch keeps and counts, and what a plan says of a recipe."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from magicdistill.models.methods.forward_passes import ForwardPass
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.backbones.base import BackboneConfig, Sample
from magicdistill.models.networks.config import KernelsConfig, LoraConfig, Recompute
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.lora import lora_strength
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import load_recipe, recipe_names
from magicdistill.platform.config.sections import OptimizerConfig, Precision, TorchEngineConfig
from magicdistill.platform.engines.engine import TorchEngine, lr_factor
from magicdistill.platform.launch.cli import parse_job
from magicdistill.platform.planning.budget import (
    budget,
    copy_seconds,
    encoding_operations,
    write_seconds,
)
from magicdistill.platform.planning.flops import operations, saved_bytes
from magicdistill.platform.planning.memory import parts_of, state_rows, total
from magicdistill.platform.planning.plan import Change, changed, plan
from magicdistill.platform.planning.plan_table import format_plan, to_json
from magicdistill.platform.planning.rehearsal import FLOPS
from tests.jobs_in_process import apart, run
from tests.tiny import tiny_inputs, tiny_shapes, tiny_wan
from tests.tiny15 import tiny15_shapes

__all__ = ["apart"]
SHAPES = tiny_shapes(num_attention_heads=8, num_layers=3, num_single_layers=5, num_text_tokens=4)
FAMILIES: dict[str, BackboneConfig] = {
    "hunyuan-video": SHAPES,
    "wan2.1": tiny_wan(attention_head_dim=24, num_layers=4, ffn_dim=192, image_dim=6),
    "wan2.2": tiny_wan(attention_head_dim=24, num_layers=4, ffn_dim=192),
    "hunyuan-video-1.5": tiny15_shapes(num_attention_heads=8, num_layers=6, num_text_tokens=4),
}
RANK = 4
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
PORTRAIT = "magic141-4step-8xh100"


def sample(precision: Precision = "fp32", shapes: BackboneConfig = SHAPES) -> Sample:
    size = DTYPES[precision].itemsize
    return Sample(shapes, 3, 12, 12, activation_bytes=size, lora_rank=RANK)


def generator(
    precision: Precision, *, recompute: Recompute, shapes: BackboneConfig = SHAPES
) -> tuple[nn.Module, Callable[[], Tensor]]:
    network = VelocityModel(build_transformer(shapes)).to(DTYPES[precision])
    set_kernels(network, KernelsConfig(recompute_blocks=recompute))
    return network, lambda: network(*tiny_inputs())


def critic(
    precision: Precision, *, recompute: Recompute, shapes: BackboneConfig = SHAPES
) -> Critic:
    network = Critic(build_transformer(shapes), LoraConfig(rank=RANK), adversarial=True)
    network = network.to(DTYPES[precision])
    set_kernels(network, KernelsConfig(recompute_blocks=recompute))
    return network


backbones = pytest.mark.parametrize("shapes", FAMILIES.values(), ids=FAMILIES)


def measured(module: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd keeps of a forward, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address not in parameters
    )


@backbones
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_generators_saved_activations_are_predicted(
    precision: Precision, recompute: Recompute, shapes: BackboneConfig
) -> None:
    module, forward = generator(precision, recompute=recompute, shapes=shapes)
    predicted = saved_bytes(
        sample(precision, shapes), ForwardPass("generator", "", "weights"), recompute=recompute
    )
    assert predicted == pytest.approx(measured(module, forward), rel=0.1)


@backbones
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_critics_saved_activations_are_predicted(
    precision: Precision, recompute: Recompute, shapes: BackboneConfig
) -> None:
    module = critic(precision, recompute=recompute, shapes=shapes)
    steps = {
        "velocity": ForwardPass("critic", "", "lora"),
        "logits": ForwardPass("critic", "", "weights", blocks="discriminator"),
    }
    for output, step in steps.items():
        predicted = saved_bytes(sample(precision, shapes), step, recompute=recompute)
        kept = measured(module, lambda output=output: module(*tiny_inputs(), output=output))
        assert predicted == pytest.approx(kept, rel=0.1), output


@backbones
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_gradient_through_the_frozen_critic_is_predicted(
    precision: Precision, recompute: Recompute, shapes: BackboneConfig
) -> None:
    module = critic(precision, recompute=recompute, shapes=shapes).requires_grad_(False)
    x, sigma, conditions = tiny_inputs()
    with lora_strength(module, 0.0):
        kept = measured(
            module, lambda: module(x.requires_grad_(), sigma, conditions, output="logits")
        )
    predicted = sum(
        saved_bytes(
            sample(precision, shapes),
            ForwardPass("critic", "", "inputs", blocks=blocks),
            recompute=recompute,
        )
        for blocks in ("features", "discriminator")
    )
    assert predicted == pytest.approx(kept, rel=0.1)


@backbones
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_operations_are_those_that_torch_counts(
    recompute: Recompute, shapes: BackboneConfig
) -> None:
    _, forward = generator("fp32", recompute=recompute, shapes=shapes)
    ours = {op: FLOPS[op].__wrapped__ for op in FLOPS.keys() - flop_registry.keys()}
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        forward().sum().backward()
    predicted = operations(
        sample(shapes=shapes), ForwardPass("generator", "", "weights"), recompute=recompute
    )
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("precision", DTYPES)
def test_what_the_torch_engine_keeps_is_predicted(precision: Precision) -> None:
    module = critic(precision, recompute="none")
    engine = TorchEngine(
        TorchEngineConfig(precision=precision), module, OptimizerConfig(lr=1e-3), 1
    )
    trained = [p for p in module.parameters() if p.requires_grad]
    engine.backward(sum((p.square().sum() for p in trained), torch.zeros(())), last=True)
    masters = list(engine.masters.values())
    gradients = sum(p.grad.nbytes for p in masters or trained if p.grad is not None)
    engine.step()
    moments = [t for state in engine.optimizer.state.values() for t in state.values()]
    kept = {
        "parameters": sum(p.nbytes for p in module.parameters()),
        "gradients": gradients,
        "optimiser": sum(t.nbytes for t in (*masters, *moments)),
    }
    rows = [
        row
        for part in parts_of("critic", module)
        for row in state_rows(part, TorchEngineConfig(precision=precision), 1)
    ]
    for kind, count in kept.items():
        assert total([row for row in rows if row.kind == kind]) == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("magic141")])
def test_every_magic141_recipe_fits_on_its_gpus(name: str) -> None:
    made = plan(load_recipe(name))
    assert made.fits, format_plan(made)
    network = next(row for row in made.held if row.kind == "parameters")
    assert network.bytes * made.recipe.cluster.num_workers == pytest.approx(2 * 12.82e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions"), [("wan21-i2v-4step-32xh100", 16.4), ("wan22-i2v-4step-32xh100", 14.3)]
)
def test_every_wan_recipe_fits_on_its_gpus(name: str, billions: float) -> None:
    made = plan(load_recipe(name, ["--schedule.sample_every", "50"]))
    assert made.fits, format_plan(made)
    network = next(row for row in made.held if row.kind == "parameters")
    assert network.bytes * 32 == pytest.approx(2e9 * billions, rel=0.01)
    assert made.sample.video_tokens == 21 * 30 * 52, "81 frames of 480 x 832"
    steps = made.updates[0].forwards[0].most
    is_expert = billions < 15
    assert steps == (2 if is_expert else 4), "an expert has its own steps alone"
    networks = [row.bytes for row in made.held if row.place == "host" and row.part != "checkpoint"]
    assert sum(networks) == pytest.approx(4e9 * billions * is_expert, rel=0.01), "the other one"


def test_a_lora_student_needs_twenty_gib_less_of_each_of_eight_gpus() -> None:
    full, lora = (plan(load_recipe(name)) for name in (PORTRAIT, "magic141-lora-4step-8xh100"))
    assert full.gpu_bytes - lora.gpu_bytes > 20 * 2**30
    bases = [row for row in lora.held if (row.part, row.kind) == ("frozen base", "parameters")]
    assert [row.role for row in bases] == ["generator"]  # the critic's is the same
    assert lora.checkpoint_bytes < 0.1 * full.checkpoint_bytes
    states = {(row.part, row.kind): row.bytes for row in lora.held if row.role == "generator"}
    critic = {(row.part, row.kind): row.bytes for row in lora.held if row.role == "critic"}
    for kind in ("parameters", "gradients", "optimiser"):
        assert states["LoRA", kind] == critic["LoRA", kind] > 0
        assert ("network", kind) not in states
    assert lora.evaluation_bytes == full.evaluation_bytes  # it is sampled merged


def test_the_rank_of_a_lora_student_costs_operations() -> None:
    small, large = (
        plan(load_recipe("magic141-lora-4step-8xh100", ["--method.student.rank", rank]))
        for rank in ("16", "256")
    )
    full = plan(load_recipe(PORTRAIT))
    assert small.operations_per_cycle < large.operations_per_cycle
    assert small.operations_per_cycle < full.operations_per_cycle  # no gradients of weights


def test_parameters_that_stay_whole_are_planned() -> None:
    recipe = load_recipe(PORTRAIT)
    rows = {
        row.role: row.bytes
        for row in plan(changed(recipe, {"engine.whole_numel": 400_000})).held
        if row.kind == "small parameters"
    }
    lora, width = 2 * 128 * 3072 * 2, 3072  # both matrices of a linear from width to width, bf16
    assert rows["critic"] > 10 * 20 * lora
    assert 80 * width * 2 < rows["generator"] < 0.02 * rows["critic"]
    none = plan(changed(recipe, {"engine.whole_numel": 0})).held
    assert total([row for row in none if row.kind == "small parameters"]) == 0


def test_what_does_not_fit_is_refused_and_each_remedy_makes_it_fit(
    capsys: pytest.CaptureFixture[str], apart: None
) -> None:
    assert run("plan", f"--recipe {PORTRAIT} --engine.zero_stage 2")[0] == 1
    flags = ["--recipe", PORTRAIT, "--engine.zero_stage", "2", "--dry_run"]
    with pytest.raises(SystemExit) as stop:
        parse_job("distill", default_recipe=PORTRAIT, description="", arguments=flags)
    assert stop.value.code == 2
    refusal = capsys.readouterr().err
    assert f"{PORTRAIT} does not fit" in refusal
    remedies = [line.split("  (")[0].split() for line in refusal.splitlines() if "  --" in line]
    assert ["--engine.kind", "deepspeed", "--engine.zero_stage", "3"] in remedies
    for remedy in remedies:
        assert plan(load_recipe(PORTRAIT, [*flags[2:4], *remedy])).fits


def test_a_plan_is_a_table_and_json() -> None:
    made = plan(load_recipe("magic141-1step-16xh100"), mfu=0.5)
    table, values = format_plan(made), json.loads(to_json(made))
    for text in (
        "LoRA",
        "discriminator",
        "gathered layers",
        "50% MFU",
        "samples/s",
        "4 steps per cycle",
    ):
        assert text in table
    held = sum(row["bytes"] for row in values["held"] if row["place"] == "gpu")
    peak = max(sum(row["bytes"] for row in rows) for rows in values["peaks"].values())
    assert values["gpu_bytes"] == pytest.approx(held + peak + values["reserve_bytes"])
    assert values["seconds_per_cycle"] > 0 and values["pair_actors"] > 0


def test_a_plan_says_how_many_actors_make_the_pairs() -> None:
    recipe = load_recipe("magic141-1step-16xh100")
    assert recipe.pairs is not None
    wanted = plan(recipe, mfu=0.4).num_pair_actors
    assert recipe.pairs.num_actors == plan(recipe).num_pair_actors + 1, "as its comment says"
    fewer = changed(recipe, {"pairs.num_actors": wanted - 1})
    assert f"give pairs.num_actors {wanted}" in format_plan(plan(fewer, mfu=0.4))


def test_a_plan_says_where_a_cycles_seconds_go() -> None:
    made = plan(load_recipe(PORTRAIT))
    table, values = format_plan(made), json.loads(to_json(made))
    assert "by published and estimated rates of cudnn on h100" in table
    assert "of all gathers and reductions is hidden" in table
    in_turn = ("attention", "linear", "other", "exchange", "waiting")
    seconds = sum(values["seconds_by_kind"][kind] for kind in in_turn)
    assert seconds == pytest.approx(values["seconds_per_cycle"])
    assert 0.3 < made.mfu < made.inference_mfu < 0.6, "a backward is slower than a forward"


def test_a_plan_judges_the_memory_of_an_actor_that_makes_pairs() -> None:
    recipe = load_recipe("magic141-1step-16xh100")
    alone = plan(recipe)
    whole = next(row for row in alone.pair_rows if row.kind == "parameters")
    assert whole.bytes == pytest.approx(2 * 12.82e9, rel=0.01)
    parts = {"cluster.gpus_per_worker": 0.7, "pairs.gpus_per_actor": 0.3}
    crowded = plan(changed(recipe, parts))
    assert alone.fits and not crowded.fits and crowded.pair_bytes > crowded.pair_limit
    parts = {"cluster.gpus_per_worker": 0.54, "pairs.gpus_per_actor": 0.46}
    small = {"kernels.recompute_blocks": "full"}
    assert plan(changed(recipe, parts | small)).fits and not plan(changed(recipe, parts)).fits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cluster.sequence_parallel": 5}, "24 attention heads do not divide"),
        (
            {"schedule.batch_size": 6},
            "batch_size 6 does not divide over 2 groups x 2 micro-batches",
        ),
        ({"cluster.num_workers": 7}, "does not divide into groups"),
    ],
)
def test_what_does_not_divide_is_refused(change: Change, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(changed(load_recipe(PORTRAIT), change))


def test_a_recipe_on_cpus_is_counted_and_not_judged() -> None:
    made = plan(load_recipe("portrait-tiny-smoke"))
    assert made.fits is None
    assert "runs on CPUs" in format_plan(made)


def test_a_method_without_a_transformer_has_no_plan() -> None:
    with pytest.raises(RecipeError, match=r"method\.name vae"):
        plan(load_recipe("portrait-tiny-vae"))


def test_offloaded_states_move_to_the_host() -> None:
    recipe = load_recipe(PORTRAIT)
    kept, moved = plan(recipe), plan(changed(recipe, {"engine.offload_optimizer": True}))
    hosted = {row.kind for row in moved.held if row.place == "host"}
    assert hosted == {"gradients", "optimiser", "copy being written"}
    states = [row for row in kept.held if row.kind in ("gradients", "optimiser")]
    assert kept.gpu_bytes - moved.gpu_bytes == pytest.approx(total(states))
    assert moved.host_bytes > total(states)


def test_the_rate_falls_to_the_final_one() -> None:
    factor = lr_factor(OptimizerConfig(lr=5e-5, final_lr=1e-5, decay_steps=100))
    assert [5e-5 * factor(step) for step in (0, 50, 100)] == pytest.approx([5e-5, 3e-5, 1e-5])


def test_a_second_of_video_takes_a_gpu_its_steps_of_the_network() -> None:
    made = plan(load_recipe(PORTRAIT), mfu=0.4)
    seconds = made.seconds_per_video_second
    assert made.gpu is not None and seconds is not None
    tokens, width, blocks = 33 * 34 * 60 + 256, 3072, 60
    forward = blocks * (24 * tokens * width**2 + 4 * tokens**2 * width)
    assert seconds == pytest.approx(4 * forward / (0.4 * made.gpu.operations_per_s) / (129 / 24))
    assert f"sampling: {seconds:.3g} s of one h100" in format_plan(made)
    one = plan(load_recipe("magic141-1step-16xh100"), mfu=0.4)
    assert one.seconds_per_video_second == pytest.approx(seconds / 4)
    assert plan(load_recipe("portrait-tiny")).seconds_per_video_second is None


@pytest.mark.parametrize(
    ("name", "actors"), [("magic141-4step-8xh100", 8), ("magic141-4step-40xh100", 16)]
)
def test_the_table_at_the_end_is_planned_on_the_gpus_of_the_workers(name: str, actors: int) -> None:
    made = plan(load_recipe(name), mfu=0.4)
    assert made.num_evaluators == actors
    assert made.evaluation_bytes < made.gpu_limit
    assert f"after the training on {actors} of its workers' GPUs" in format_plan(made)


def test_held_out_clips_that_are_too_many_at_once_are_refused_with_the_fix() -> None:
    made = plan(load_recipe("magic141-4step-8xh100", ["--evaluation.batch_size", "16"]))
    assert made.fits is False
    assert any("--evaluation.batch_size 1 " in remedy for remedy in made.remedies)


def test_the_encoder_is_counted_in_whole_windows():
    vae = load_recipe(PORTRAIT).model.shapes.vae
    bucket = load_recipe(PORTRAIT).data.bucket
    small = bucket.model_copy(update={"height": 64, "width": 64, "num_frames": 17})
    one = encoding_operations(vae, small)
    longer = small.model_copy(update={"num_frames": 34})
    wider = small.model_copy(update={"width": 128})
    assert encoding_operations(vae, longer) == 2 * one
    assert encoding_operations(vae, wider) == pytest.approx(2 * one, rel=0.05)


def test_a_budget_adds_up_what_the_stages_hold_and_store():
    made = plan(load_recipe("magic141-1step-16xh100"), mfu=0.4)
    costs = budget(made)
    assert costs is not None and made.seconds_per_cycle is not None
    assert costs.num_gpus == 16 + 3, "the actors that make pairs are paid for too"
    training = 19 * made.seconds_per_cycle * 1500 / 3600
    assert costs.training_hours == pytest.approx(training)
    stages = costs.training_hours + costs.evaluation_hours + costs.encoding_hours
    assert costs.gpu_hours == pytest.approx(stages)
    assert costs.cache_bytes == costs.num_windows * made.sample_bytes
    trained = sum(row.bytes for row in made.held if row.kind == "optimiser") * 16 / 12
    assert costs.checkpoint_bytes == pytest.approx(12 * trained)
    assert costs.storage_bytes > costs.num_checkpoints * costs.checkpoint_bytes


def test_a_plan_says_how_long_a_checkpoint_is_written_and_how_long_it_is_waited_for():
    made = plan(load_recipe("magic141-4step-40xh100"))
    costs = budget(made)
    assert costs is not None
    seconds = write_seconds(costs.checkpoint_bytes)
    assert seconds["EFS, elastic"] == pytest.approx(costs.checkpoint_bytes / 1e9)
    assert copy_seconds(costs.checkpoint_bytes, 40) == pytest.approx(1.0, abs=0.2)
    written = ", ".join(f"{value:.0f} s on {name}" for name, value in seconds.items())
    share = f"({costs.checkpoint_bytes / 40 / 2**30:.1f} GiB a GPU)"
    assert f"host memory {share}, and goes on while it is written: {written}" in format_plan(made)


def test_a_price_makes_a_cost_of_the_gpu_hours():
    made = plan(load_recipe(PORTRAIT), mfu=0.4)
    costs = budget(made)
    assert costs is not None
    assert f": {costs.gpu_hours * 2.5:.0f} at 2.5 per GPU-hour" in format_plan(made, 2.5)
    assert "per GPU-hour" not in format_plan(made)
    assert json.loads(to_json(made, 2.5))["cost"] == pytest.approx(costs.gpu_hours * 2.5)
    assert json.loads(to_json(plan(load_recipe("portrait-tiny")), 2.5))["cost"] is None
