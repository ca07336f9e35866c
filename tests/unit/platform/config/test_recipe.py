"""Recipe files: inheritance, refusal, and the way back to YAML."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from magicdistill.data_pipeline.scorers.base import ABSENT
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe, flatten, load_recipe, recipe_names, to_yaml
from magicdistill.platform.config.sections import DeepSpeedEngineConfig, TorchEngineConfig


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_is_named_after_its_file(base: Path) -> None:
    assert load_recipe(base).name == "base"


def test_a_recipe_extends_another_one_and_keeps_its_own_name(base: Path, tmp_path: Path) -> None:
    child = write(
        tmp_path / "child.yaml",
        "extends: base.yaml\nseed: 4\nschedule: {optimizers: {generator: {lr: 0.5}}}\n"
        "engine: {kind: torch}\n",
    )
    recipe = load_recipe(child)
    assert (recipe.name, recipe.seed, recipe.schedule.num_cycles) == ("child", 4, 10)
    assert recipe.schedule.optimizers["generator"].lr == 0.5
    assert recipe.schedule.optimizers["critic"].lr == 1e-3
    assert recipe.engine == TorchEngineConfig(precision="bf16")


def test_recipes_share_a_section_that_a_file_of_its_own_has(tmp_path: Path) -> None:
    clips = "{kind: portrait-world, num_clips: 3}"
    write(tmp_path / "clips.yaml", f"data: {{sources: [{clips}], flip: false}}\n")
    for parent in ("portrait-tiny", "portrait-tiny-teacher"):
        text = f"extends: [{parent}, clips.yaml]\ndata: {{windows_per_clip: 2}}\n"
        recipe, before = load_recipe(write(tmp_path / "mine.yaml", text)), load_recipe(parent)
        assert [source.num_clips for source in recipe.data.sources] == [3]  # type: ignore[attr-defined]
        assert (recipe.data.flip, recipe.data.windows_per_clip, recipe.name) == (False, 2, "mine")
        assert (recipe.method, recipe.data.policy) == (before.method, before.data.policy)


def test_a_recipe_that_extends_itself_is_refused(base: Path, tmp_path: Path) -> None:
    write(base, "extends: child.yaml\n")
    child = write(tmp_path / "child.yaml", "extends: base.yaml\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(child)


def test_overrides_come_last(base: Path) -> None:
    recipe = load_recipe(base, ["--engine.zero_stage", "1", "--method.alpha_weak", "0"])
    assert recipe.engine == DeepSpeedEngineConfig(zero_stage=1, precision="bf16")
    assert recipe.method.model_dump()["alpha_weak"] == 0


def test_the_yaml_of_a_recipe_reads_back_equal(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe(base, ["--seed", "11"])
    assert load_recipe(write(tmp_path / "stored.yaml", to_yaml(recipe))) == recipe


def test_an_unknown_key_is_refused_with_the_nearest_name(base: Path) -> None:
    write(base, base.read_text() + "cluster: {num_wokers: 2}\n")
    with pytest.raises(RecipeError, match=r"cluster\.num_wokers; did you mean cluster\.num_work"):
        load_recipe(base)


def test_offloading_parameters_needs_stage_3(base: Path) -> None:
    write(
        base, base.read_text().replace("zero_stage: 3", "zero_stage: 2, offload_parameters: true")
    )
    with pytest.raises(RecipeError, match="offload_parameters needs zero_stage 3"):
        load_recipe(base)


def test_bf16_without_sums_of_gradients_in_float32_is_refused(base: Path) -> None:
    text = base.read_text().replace("zero_stage: 3", "zero_stage: 0")
    assert load_recipe(write(base, text.replace("bf16", "fp32")))
    with pytest.raises(RecipeError, match="zero_stage 0 would add up the gradients of precision"):
        load_recipe(write(base, text))


@pytest.mark.parametrize("text", ["- a list\n", "a: [unclosed\n", ""])
def test_a_file_that_is_no_recipe_is_refused_by_name(base: Path, text: str) -> None:
    write(base, text)
    with pytest.raises(RecipeError, match=r"base\.yaml"):
        load_recipe(base)


def test_an_unknown_recipe_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(RecipeError, match="no recipe 'portait-tiny'"):
        load_recipe("portait-tiny")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_project_is_valid(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    "half",
    ["pairs: {generator: there}\n", "method: {pairs: {num_cycles: 2}, sampler: {num_steps: 1}}\n"],
)
def test_pairs_are_made_and_used_or_neither(base, half):
    path = base.with_name("half.yaml")
    path.write_text(f"extends: {base}\n{half}")
    with pytest.raises(RecipeError, match="give both or none"):
        load_recipe(path)


def test_the_nightly_recipe_takes_every_score_that_it_limits_and_no_package_lacks() -> None:
    data = load_recipe("nightly").data
    taken = {scorer.kind for scorer in data.measures.scorers}
    limited = {name.partition(".")[0] for name in data.policy.limits_of("portrait")}
    assert limited - taken == {"aesthetics", "caption", "koala", "motion", "video"}
    assert not [s.version for s in data.measures.scorers if s.version.startswith(ABSENT)]


def test_nested_values_flatten_to_dotted_names() -> None:
    values = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}]}
    assert flatten(values) == {"a.b": 1, "a.c": [1, 2], "d.0.e": None}


def test_a_recipe_in_another_encoding_is_refused_by_line_and_one_with_a_mark_is_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    text = "extends: portrait-tiny\nname: caf\xe9\n"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"mine\.yaml: line 2 is not UTF-8"):
        load_recipe(path)
    path.write_bytes(b"\0\0\0\x20ftypisom")
    with pytest.raises(RecipeError, match=r"mine\.yaml: a binary file"):
        load_recipe(path)
    path.write_bytes(text.encode("utf-8-sig"))
    assert load_recipe(path).name == "caf\xe9"


def test_a_recipe_is_found_by_an_address_of_a_file_and_from_the_home(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(base.parent))
    for name in (f"file://{base}", "~/base.yaml", "$HOME/base.yaml"):
        assert load_recipe(name) == load_recipe(base)
    with pytest.raises(RecipeError, match="not an address"):
        load_recipe("https://example.org/base.yaml")


def test_one_root_takes_the_place_of_data_in_every_path_of_weights_and_clips():
    recipe = load_recipe("magic141-1step-16xh100", ["--assets_root", "/mnt/shared/"])
    assert recipe.model.vae == recipe.model.teacher == "/mnt/shared/weights/magic141"
    assert recipe.pairs is not None and recipe.evaluation is not None
    assert recipe.pairs.generator == "/mnt/shared/weights/magic141-4step"
    sources = [*recipe.data.sources, *recipe.evaluation.data.sources]
    paths = [source.model_dump()["path"] for source in sources]
    assert paths == ["/mnt/shared/clips/portraits", "/mnt/shared/clips/held-out"]
    assert '"data/' not in recipe.model_dump_json()


def test_a_recipe_with_moved_assets_is_stored_and_read_back_equal(tmp_path):
    recipe = load_recipe("magic141-4step-40xh100", ["--assets_root", str(tmp_path)])
    (tmp_path / "stored.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "stored.yaml") == recipe


def test_a_path_that_is_given_goes_before_the_root_and_without_a_root_nothing_moves():
    flags = ["--assets_root", "/mnt", "--model.vae", "/elsewhere/vae"]
    model = load_recipe("magic141-4step-40xh100", flags).model
    assert (model.vae, model.teacher) == ("/elsewhere/vae", "/mnt/weights/magic141")
    assert load_recipe("magic141-4step-40xh100").model.vae == "data/weights/magic141"
    tiny = ["portrait-tiny", "portrait-tiny-1step"]
    moved = [load_recipe(name, ["--assets_root", "/mnt"]).model for name in tiny]
    assert moved == [load_recipe(name).model for name in tiny]


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        ([], 1e-3),
        (["--schedule.critic_rate", "0.2"], 2e-5),
        (["--schedule.critic_rate", "5", "--schedule.optimizers.generator.lr", "1e-5"], 5e-5),
    ],
)
def test_a_critics_rate_may_be_a_multiple_of_the_generators(flags: list[str], rate: float):
    recipe = load_recipe("portrait-tiny", flags)
    assert recipe.schedule.optimizers["critic"].lr == pytest.approx(rate)
    again = Recipe.model_validate(recipe.model_dump())
    assert again == recipe


def test_a_multiple_of_no_rate_is_refused():
    values = load_recipe("portrait-tiny").model_dump()
    schedule = values["schedule"] | {"critic_rate": 2.0, "optimizers": {"critic": {"lr": 1.0}}}
    with pytest.raises(ValidationError, match=r"critic_rate 2 is a multiple of.*generator\.lr"):
        Recipe.model_validate(values | {"schedule": schedule})
