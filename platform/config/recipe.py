"""A run in one file: YAML recipes, their inheritance, and overrides."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from magicdistill.data_pipeline.config import DataConfig
from magicdistill.models.config import Config
from magicdistill.models.methods.base import MethodConfig
from magicdistill.models.methods.registry import AnyMethod
from magicdistill.models.networks.config import KernelsConfig
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.models.paths import LocalPath, Location, PathError, local_path
from magicdistill.platform.config.overrides import apply_overrides, merge
from magicdistill.platform.config.plugins import load_flagged, load_plugins
from magicdistill.platform.config.renamed import with_present_names
from magicdistill.platform.config.sections import (
    ClusterConfig,
    DeepSpeedEngineConfig,
    EngineConfig,
    EvaluationConfig,
    HealthConfig,
    PairsConfig,
    ScheduleConfig,
    TrackingConfig,
)
from magicdistill.platform.config.validation import (
    UNLOADED_PLUGIN,
    RecipeError,
    demand_folder_name,
    validate,
)
from magicdistill.platform.config.yaml_files import read_yaml

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
PROTOCOLS = RECIPES / "protocols"
COMPARISONS = RECIPES / "comparisons"
ASSETS = "data/"
"""How a recipe begins the paths that `assets_root` moves."""
MODEL_FIELDS = ("null_text", "prompts", "encoding", "decoder", "num_actors")
"""What `data` says of the model and the cluster; a protocol takes it from the recipe."""


class Recipe(Config):
    """Everything that decides what a run does."""

    name: str
    """Names the run's folder; a recipe file without it is named after the file."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    """Seed of every random number of the run."""
    runs: LocalPath = "runs"
    """Folder that receives the run. A relative one starts at the current folder; in a submitted
    job, whose current folder is a passing copy, at the home folder."""
    mirror: Location | None = None
    """Address that receives a copy of every checkpoint, such as s3://bucket/prefix; a run finds
    its own there again, by its name, where they are damaged or missing in its folder."""
    data_root: Location | None = None
    """Folder or s3://bucket/prefix of the ledger and the latents, which runs share; null is `data`
    beside the runs. A relative one starts where that of `runs` does."""
    assets_root: LocalPath | None = None
    """Folder that takes the place of `data` in every path of the recipe that begins with `data/`,
    which is how the recipes of 13B name their weights and clips; null leaves these paths as they
    are. On a cluster it is on the file system that all nodes mount."""
    model: ModelConfig = ModelConfig()
    """Networks of the run and where their first weights are."""
    data: DataConfig
    method: AnyMethod
    pairs: PairsConfig | None = None
    """Generator that makes the pairs of `method.pairs`."""
    schedule: ScheduleConfig
    """Length of the training, batch, optimisers, checkpoints and validation."""
    evaluation: EvaluationConfig | None = None
    """Held-out clips on which a generator is judged; null judges none."""
    health: HealthConfig = HealthConfig()
    """Limits of a healthy training, and what happens beyond them."""
    engine: EngineConfig = DeepSpeedEngineConfig()
    """What runs forward, backward and update: DeepSpeed or plain PyTorch."""
    kernels: KernelsConfig = KernelsConfig()
    """How the transformer's blocks are computed; what they compute stays the same."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray cluster, number of workers and their GPUs."""
    tracking: TrackingConfig = TrackingConfig()
    """Where MLflow keeps the runs."""
    plugins: tuple[str, ...] = Field(default=(), exclude_if=lambda modules: not modules)
    """Python modules of your own that register methods, sources, scorers, metrics,
    backbones and presets (docs/extending.md)."""

    @model_validator(mode="before")
    @classmethod
    def _load_plugins(cls, values: Any) -> Any:
        """Import the plugins before the other fields choose what those register."""
        modules = values.get("plugins", ()) if isinstance(values, dict) else ()
        try:
            load_plugins(_texts(modules))
        except RecipeError as error:
            raise PydanticCustomError(UNLOADED_PLUGIN, "{why}", {"why": str(error)}) from error
        return values

    @field_validator("model", "data", "pairs", "evaluation", mode="before")
    @classmethod
    def _find_assets(cls, values: Any, info: ValidationInfo) -> Any:
        """Write down where the assets are, so that a stored recipe says it all."""
        root = info.data.get("assets_root")
        if root is None:
            return values
        return _moved(values.model_dump() if isinstance(values, Config) else values, root)

    @field_validator("method")
    @classmethod
    def _fit_method_to_backbone(cls, method: MethodConfig, info: ValidationInfo) -> MethodConfig:
        """Write down what the preset's backbone decides, so that a stored recipe says it all."""
        model = info.data.get("model")  # absent where it is wrong itself
        return method.fitted_to(model.shapes.transformer) if model else method

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        return demand_folder_name(name)

    @model_validator(mode="after")
    def _pairs_are_made_and_used(self) -> Self:
        if self.method.uses_pairs != (self.pairs is not None):
            raise ValueError("method.pairs uses pairs and `pairs` makes them: give both or none")
        return self

    @model_validator(mode="after")
    def _check_buckets(self) -> Self:
        if self.method.makes == "vae" and self.data.other_buckets:
            raise ValueError("data.other_buckets: a VAE trains on one shape; leave it empty")
        return self


def _moved(value: Any, root: str) -> Any:
    """Return nested values in which `root` takes the place of `data` at the front of paths."""
    if isinstance(value, dict):
        return {key: _moved(inner, root) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(inner, root) for inner in value]
    if isinstance(value, str) and value.startswith(ASSETS):
        return f"{root.rstrip('/')}/{value.removeprefix(ASSETS)}"
    return value


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by its name in `jobs/recipes` or by the path of a YAML file.

    `overrides` are command-line flags: `["--method.alpha_weak", "0.5"]`; a wrong one exits with
    status 2 and says what is meant. Raises RecipeError for an unknown recipe, an unknown key or
    a wrong value.
    """
    path = find_recipe(name_or_path)
    load_flagged(overrides)
    recipe = validate(Recipe, read_values(path), str(path))
    return apply_overrides(recipe, overrides, program=recipe.name) if overrides else recipe


def load_stored(path: Path) -> Recipe:
    """Load the resolved recipe of a run or a model, which may be older than the names of its keys.

    Raises RecipeError as `load_recipe` does.
    """
    return validate(Recipe, with_present_names(read_values(path)), str(path))


def with_protocol(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe with another evaluation.

    `name` is that of a file in `jobs/recipes/protocols`, the path of a YAML file, or a recipe that
    has an `evaluation`. The teacher's sampler, `MODEL_FIELDS` of the data and, where it names none,
    the metrics' networks stay the recipe's.
    Raises RecipeError as `load_recipe` does.
    """
    plugins = list(recipe.plugins)
    if name in recipe_names():
        other = read_values(find_recipe(name))
        values, plugins = other.get("evaluation"), [*plugins, *_texts(other.get("plugins"))]
        if values is None:
            raise RecipeError(f"--protocol {name}: the recipe {name} has no evaluation")
        values = {"name": name} | values
    else:
        values = read_values(find_recipe(name, folder=PROTOCOLS), EvaluationConfig)
    data = {field: recipe.model_dump()["data"][field] for field in MODEL_FIELDS}
    values["data"] = data | values.get("data", {})
    if recipe.evaluation is not None:
        values["teacher"] = recipe.evaluation.teacher.model_dump()
        values = {"networks": recipe.evaluation.networks} | values
    changed = {"evaluation": values, "plugins": list(dict.fromkeys(plugins))}
    return validate(Recipe, recipe.model_dump() | changed, f"--protocol {name}")


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """Return the names of the recipes that come with the project."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_recipe(
    name_or_path: str | Path, beside: Path | None = None, folder: Path = RECIPES
) -> Path:
    """Return the file of a recipe; a relative path may also start in the folder `beside`."""
    try:
        text = local_path(name_or_path)
    except PathError as error:
        raise RecipeError(str(error)) from error
    if not text.endswith((".yaml", ".yml")):
        path = folder / f"{text}.yaml"
    elif beside is not None:
        path = beside / text
    else:
        path = Path(text)
    if path.is_file():
        return path
    names = recipe_names(folder)
    near = get_close_matches(text, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise RecipeError(
        f"no recipe {text!r}: {hint}There are {', '.join(names)}; "
        "a file of your own is given by its path, ending in .yaml"
    )


def read_values(path: Path, cls: type[Config] = Recipe) -> dict[str, Any]:
    """Read a recipe file over those that it extends; the outermost file names the recipe.

    `extends` is one file or a list, of which a later one goes over those before it.
    """
    return {"name": path.stem} | _read(path, (), cls)


def _read(path: Path, extended_by: tuple[Path, ...], cls: type[Config]) -> dict[str, Any]:
    if path in extended_by:
        raise RecipeError(f"{path}: extends itself by way of {extended_by[-1]}")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of fields to values")
    parents, plugins = values.pop("extends", None) or [], _texts(values.get("plugins"))
    parents = [parents] if isinstance(parents, str) else parents
    if parents != _texts(parents):
        raise RecipeError(f"{path}: extends: give a recipe or a list of recipes, not {parents!r}")
    try:
        load_plugins(plugins)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    values.pop("about", None)  # what the file is for: recipe_list reads it
    base: dict[str, Any] = {}
    for parent in parents:
        more = _read(find_recipe(parent, beside=path.parent), (*extended_by, path), cls)
        more.pop("name", None)
        base = _over(cls, base, more)
    return _over(cls, base, values)


def _over(cls: type[Config], base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return values over those of a file that theirs extends, with the plugins of both."""
    plugins = dict.fromkeys([*_texts(base.get("plugins")), *_texts(values.get("plugins"))])
    return merge(cls, base, values | ({"plugins": list(plugins)} if plugins else {}))


def _texts(values: Any) -> list[str]:
    """Return the texts in a list; validation refuses everything else."""
    found = values if isinstance(values, list | tuple) else ()
    return [value for value in found if isinstance(value, str)]


def differences(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the dotted fields whose values differ, with both values; None where one is absent."""
    first, second = (flatten(recipe.model_dump(mode="json")) for recipe in (before, after))
    names = dict.fromkeys([*first, *second])
    pairs = {name: (first.get(name), second.get(name)) for name in names}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names, lists of plain values whole."""
    if isinstance(values, list) and any(isinstance(value, dict) for value in values):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def to_yaml(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML that `load_recipe` reads back equal."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
