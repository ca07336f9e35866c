"""One of two experts is judged as both are sampled, each at its own noise levels."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from magicdistill.data_pipeline.latents.cache import LatentCache
from magicdistill.models.diffusion.noise_levels import reaches
from magicdistill.models.networks.autoencoder.vae import build_autoencoder
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    load_transformer,
)
from magicdistill.platform.checkpoints.checkpoint_folder import checkpoint_name
from magicdistill.platform.checkpoints.checkpoints import Checkpoints
from magicdistill.platform.config.experts import LOW_NOISE, TRANSFORMER, expert_problem
from magicdistill.platform.config.recipe import Recipe, to_yaml
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.engines.engine import build_engine
from magicdistill.platform.export.pretrained_model import find_pretrained, lone_expert
from magicdistill.platform.inference.clip_generator import ClipGenerator
from magicdistill.platform.inference.generate import generate
from magicdistill.platform.inference.held_out_sampling import held_out
from magicdistill.platform.inference.sample_video import VideoSampler
from magicdistill.platform.inference.variants import own_variant, variants
from magicdistill.platform.planning.preflight import weight_problems
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.checkpoint_evaluator import CheckpointEvaluator
from magicdistill.platform.training.validation import Validation
from tests.tiny_run import tiny_recipe, write_cache

LATENTS = (16, 2, 4, 4)
HIGH, LOW = {"min": 0.9}, {"max": 0.9}
STEPS = {"high": [1.0, 0.9375], "low": [0.8333, 0.625]}
"""Noise levels of each expert's steps on the grid of four steps with shift 5."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pipelines of tiny experts with random weights, `teacher` and `students`."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    shapes = PRESETS["wan-tiny"]
    autoencoder = build_autoencoder(shapes.vae)
    for pipeline in ("teacher", "students"):
        for name in (TRANSFORMER, LOW_NOISE):
            network: Any = build_transformer(shapes.transformer)
            network.save_pretrained(folder / pipeline / name)
        autoencoder.save_pretrained(folder / pipeline / "vae")
    return folder


def recipe_of(weights: Path, interval: dict[str, float], **model: str | None) -> Recipe:
    name = LOW_NOISE if "max" in interval else TRANSFORMER
    places = {"vae": f"{weights}/teacher/vae", "teacher": f"{weights}/teacher/{name}"}
    return tiny_recipe(
        2,
        model={"preset": "wan-tiny", **places, **model},
        method={"interval": interval},
        evaluation={"num_shown": 2, "num_scored": 2},
    )


def load(folder: Path) -> VelocityModel:
    return VelocityModel(load_transformer(folder)).eval().requires_grad_(False)


def levels_of(network: VelocityModel) -> list[float]:
    """Return a list that receives the noise level of each call."""
    found: list[float] = []
    network.register_forward_pre_hook(lambda _, inputs: found.append(float(inputs[1][0])))
    return found


@pytest.mark.parametrize(
    ("interval", "own", "other"),
    [
        (HIGH, TRANSFORMER, LOW_NOISE),
        (LOW, LOW_NOISE, TRANSFORMER),
    ],
)
def test_evaluation_with_two_experts_is_sampling_with_two_experts(
    tmp_path: Path, weights: Path, interval: dict[str, float], own: str, other: str
) -> None:
    students = weights / "students"
    recipe = recipe_of(weights, interval, other_expert=str(students / other))
    cache = write_cache(tmp_path, LATENTS, num_rows=2)
    batch = held_out(LatentCache(cache), range(2), "cpu")
    assert batch.conditions is not None and recipe.method.trained_sampler is not None
    sampler = VideoSampler(find_pretrained(str(students)), "cpu")
    sampled = generate(
        sampler.field,
        recipe.method.trained_sampler,
        batch.conditions,
        LATENTS,
        seed=recipe.seed,
        positions=[0, 1],
    )

    validation = Validation(recipe, cache, rank=0, world_size=1, device="cpu", num_scored=2)
    network = load(students / own)
    torch.testing.assert_close(torch.cat(validation.generate(network)), sampled)
    scores = validation.scores(network)
    whole = recipe_of(weights, {}, teacher=str(students / LOW_NOISE))
    alone = Validation(whole, cache, rank=0, world_size=1, device="cpu", num_scored=2)
    assert scores == pytest.approx(alone.scores(sampler.field)) and scores
    assert scores != pytest.approx(alone.scores(network)), "one expert makes other videos"

    way = own_variant(recipe, students / own)
    clips, _, evaluations = ClipGenerator(recipe.model.model_dump_json()).make(
        way, cache, range(2), recipe.seed
    )
    torch.testing.assert_close(clips, sampler.vae.decode(sampled))
    assert evaluations == 4

    run = RunDirectory.create(tmp_path / "runs", recipe)
    optimizer = recipe.schedule.optimizers["generator"]
    engine = build_engine(
        recipe.engine, network.requires_grad_(True), optimizer, num_micro_batches=1
    )
    Checkpoints(run.checkpoints, keep=1).save(1, {"generator": engine}, None)
    evaluator = CheckpointEvaluator(run, str(cache))
    assert evaluator.score(run.checkpoints / checkpoint_name(1)) == pytest.approx(scores)


@pytest.mark.parametrize(("interval", "name"), [(HIGH, "high"), (LOW, "low")])
def test_a_trained_expert_is_asked_within_its_interval_alone(
    tmp_path: Path, weights: Path, interval: dict[str, float], name: str
) -> None:
    recipe = recipe_of(weights, interval)
    cache = write_cache(tmp_path, LATENTS, num_rows=2)
    validation = Validation(recipe, cache, rank=0, world_size=1, device="cpu")
    network = load(Path(str(recipe.model.teacher)))
    levels = levels_of(network)
    validation.generate(network)
    assert levels == pytest.approx(2 * STEPS[name], abs=1e-4)
    levels.clear()
    validation.measure_teacher(network)
    assert levels and all(reaches(level, 0.9) == (name == "high") for level in levels)


def test_the_teacher_has_its_own_other_expert_and_the_student_the_one_that_is_named(
    weights: Path,
) -> None:
    beside, student = weights / "teacher" / LOW_NOISE, weights / "students" / TRANSFORMER
    finished, lone = student.parent / LOW_NOISE, weights / "lone"
    ways = variants(recipe_of(weights, HIGH), student)
    found = {way.name: way.other and way.other.weights for way in ways}
    assert found == {"teacher": beside, "euler": beside, "student": finished}
    named = variants(recipe_of(weights, HIGH, other_expert=str(finished)), lone)
    assert named[-1].other and named[-1].other.weights == finished
    assert (still := variants(recipe_of(weights, HIGH), lone)[-1].other)
    assert still.weights == beside, "the teacher's, while the other student is not finished"


def test_a_pipeline_is_judged_with_both_experts_as_it_is_sampled(weights: Path) -> None:
    students = weights / "students"
    recipe = recipe_of(weights, {})
    way, model = own_variant(recipe, students / TRANSFORMER), find_pretrained(str(students))
    assert way.other and (way.other.weights, way.other.levels[0]) == (model.low_noise, 0.9)
    assert own_variant(recipe, students / LOW_NOISE).other is None
    with pytest.raises(RecipeError, match=r"--model .*/transformer: it is the expert for other"):
        own_variant(recipe_of(weights, LOW), students / TRANSFORMER)


def test_sampling_one_of_two_experts_alone_is_warned_of(tmp_path: Path, weights: Path) -> None:
    assert lone_expert(find_pretrained(str(weights / "students"))) is None
    network: Any = load_transformer(weights / "students" / TRANSFORMER)
    network.save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_of(weights, HIGH)))
    warning = lone_expert(find_pretrained(str(tmp_path)))
    assert warning and "from 0.9 to 1 alone" in warning and "--low_noise" in warning


@pytest.mark.parametrize(
    ("interval", "model", "words"),
    [
        ({}, {"other_expert": "students/transformer_2"}, "leaves it no step; give method.interval"),
        ({"min": 0.7, "max": 0.95}, {}, "only two experts make a video together"),
        (HIGH, {"other_expert": "teacher/transformer"}, "it is model.teacher itself"),
        (HIGH, {"teacher": "teacher/transformer_2"}, "other noise levels .* give .*/transformer$"),
        (HIGH, {"teacher": "lone"}, "alone, and beside this one is no .* or give model.other"),
        (HIGH, {"teacher": "lone", "other_expert": "students/transformer_2"}, "transformer_2$"),
        (HIGH, {"other_expert": "high/model"}, "its run has method.interval 0.9 to 1, and this"),
        (HIGH, {"other_expert": "eight/model"}, "its run has method.sampler euler in 8 steps"),
        (HIGH, {"other_expert": "nowhere"}, "model.other_expert: no weights"),
        (HIGH, {"other_expert": "assets/portrait-tiny/teacher"}, "HunyuanVideoTransformer3DModel"),
    ],
)
def test_an_other_expert_that_is_missing_or_does_not_fit_is_refused_before_a_run(
    weights: Path, interval: dict[str, float], model: dict[str, str], words: str
) -> None:
    network: Any = load_transformer(weights / "students" / TRANSFORMER)
    for name, values, steps in (("high", HIGH, 4), ("eight", LOW, 8)):
        run = weights / name
        if not run.exists():
            network.save_pretrained(run / "model")
            trained = recipe_of(weights, values).model_dump()
            trained["method"]["sampler"]["num_steps"] = steps
            (run / "recipe.yaml").write_text(to_yaml(Recipe.model_validate(trained)))
    if not (weights / "lone").exists():
        network.save_pretrained(weights / "lone")
    places = {
        field: place if place.startswith("assets") else str(weights / place)
        for field, place in model.items()
    }
    recipe = recipe_of(weights, interval, **places)
    (problem,) = [text for _, text in weight_problems(recipe)]
    assert re.search(words, problem), problem
    if expert_problem(recipe):
        with pytest.raises(RecipeError, match=words):
            variants(recipe, weights / "students" / "nothing")
