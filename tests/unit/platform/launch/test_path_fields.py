"""Every field and flag that takes a path, in recipes, lists and all jobs."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError

from magicdistill.data_pipeline.captioning.captions import WRITERS
from magicdistill.data_pipeline.scorers.registry import SCORERS
from magicdistill.data_pipeline.sources.registry import SOURCES
from magicdistill.models import paths
from magicdistill.models.config import Config
from magicdistill.models.methods.registry import METHODS
from magicdistill.platform.comparison.comparison_recipe import ComparisonRecipe
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.config.sections import ENGINES
from magicdistill.platform.config.validation import RecipeError, sections_in, validate
from magicdistill.platform.inference.orders import Line
from magicdistill.platform.launch.cli import JobFlags, parse_arguments, parse_job, refusing
from magicdistill.platform.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[4]
KINDS = {
    paths.LocalPath: (),
    paths.LocalFile: (),
    paths.Location: ("s3",),
    paths.WorkingDirectory: ("s3", "gs", "https"),
    paths.TrackingStore: ("https",),
}
"""The kinds of path, and which of `ADDRESSES` each takes."""
ADDRESSES = ("s3", "gs", "https", "ftp")
NO_PATHS = """
Recipe.name Recipe.plugins ModelConfig.preset TrackingConfig.experiment ClusterConfig.address
ModelConfig.teacher_layout HealthConfig.best_by EvaluationConfig.name EvaluationConfig.columns
LoraConfig.targets ComparisonRecipe.name TuningConfig.role AblationConfig.of
Folder.license Folder.name Store.pattern CelebvHq.license Hdtf.license Inter4K.license
Koala.license TalkVid.license VbenchI2v.license VbenchI2v.left_out OpenVid.license
SpeakerVid.license Table.columns Table.dataset Table.license Vfhq.license
Captions.prompt Endpoint.url Endpoint.model Endpoint.revision Endpoint.key_variable
Line.name Line.prompt JobFlags.force_changed
Arguments.only Arguments.role Arguments.prompt Arguments.address Arguments.cron Arguments.timezone
Arguments.name Arguments.env Flags.takedown
"""
"""Fields of text that are no paths. A new one belongs here or gets a kind of path."""


def forms() -> Iterator[type[Config]]:
    """Yield what the jobs parse, and what is read from files."""
    yield from (Recipe, ComparisonRecipe, Line)
    for file in sorted((ROOT / "jobs").glob("*.py")):
        found = vars(import_module(f"magicdistill.jobs.{file.stem}")).values()
        yield from (part for part in found if isinstance(part, type) and issubclass(part, Config))
    for registry in (SOURCES, SCORERS, WRITERS, METHODS, ENGINES):
        yield from registry


def sections(cls: type[Config], found: set[type[Config]]) -> set[type[Config]]:
    """Return a form and all sections below it."""
    if cls not in found:
        found.add(cls)
        for field in cls.model_fields.values():
            for inner in sections_in(field.annotation):
                sections(inner, found)
    return found


def kinds(hint: Any) -> Iterator[Any]:
    """Yield the kinds of path, and the bare texts, that an annotation is made of."""
    if get_origin(hint) is Literal or isinstance(hint, str):
        return
    known = [kind for kind in KINDS if is_marked(hint, kind)]
    if known:
        yield from known
    elif hint is str or (isinstance(hint, type) and issubclass(hint, PurePath)):
        yield hint
    else:
        parts = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
        if get_origin(hint) is dict:
            parts = parts[1:]
        for part in parts:
            yield from kinds(part)


def is_marked(hint: Any, kind: Any) -> bool:
    return get_origin(hint) is Annotated and kind.__metadata__[0] in hint.__metadata__


def fields() -> dict[str, Any]:
    """Return the kind of each field that takes a text, by class and name."""
    found: set[type[Config]] = set()
    for form in forms():
        sections(form, found)
    return {
        f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}.{name}": kind
        for cls in found
        for name, hint in get_type_hints(cls, include_extras=True).items()
        if name in cls.model_fields and name in cls.__annotations__
        for kind in kinds(hint)
    }


FIELDS = fields()
PATHS = {name: kind for name, kind in FIELDS.items() if kind in KINDS}


def test_every_field_of_text_is_a_kind_of_path_or_known_to_be_none() -> None:
    others = {name.partition(".")[2] for name, kind in FIELDS.items() if kind not in KINDS}
    others -= {name for name in others if name.endswith((".kind",)) or name == "MethodConfig.name"}
    assert others == set(NO_PATHS.split())
    assert len(PATHS) > 45


@pytest.mark.parametrize("name", sorted(PATHS))
def test_a_field_takes_local_paths_and_only_the_addresses_of_its_kind(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    kind = PATHS[name]
    field: TypeAdapter[Any] = TypeAdapter(kind)
    prefix = "sqlite:///" if kind is paths.TrackingStore else ""
    for text in ("~/x.db", "$HOME/x.db", "${HOME}/x.db", "file:///home/ada/x.db"):
        assert str(field.validate_python(text)) == f"{prefix}/home/ada/x.db"
    for scheme in ADDRESSES:
        if scheme in KINDS[kind]:
            assert field.validate_python(f"{scheme}://place/x") == f"{scheme}://place/x"
        else:
            with pytest.raises(ValidationError, match="give"):
                field.validate_python(f"{scheme}://place/x")


def parse(job: str, words: list[str]) -> None:
    module = import_module(f"magicdistill.jobs.{job}")
    if form := getattr(module, "Arguments", None):
        parse_arguments(job, form, "", words)
    else:
        own = {"curate": "portrait-tiny-data", "finetune": "portrait-tiny-teacher"}
        recipe = own.get(job, "portrait-tiny")
        form = getattr(module, "Flags", JobFlags)
        parse_job(job, form, default_recipe=recipe, description="", arguments=words)


RECIPES = {
    "runs": "s3://bucket/runs",
    "mirror": "gs://bucket/runs",
    "data_root": "gs://bucket/data",
    "model.vae": "https://example.org/vae",
    "tracking.uri": "s3://bucket/mlflow",
    "evaluation.networks": "s3://bucket/networks",
    "data.sources.0.path": "gs://bucket/clips",
}


@pytest.mark.parametrize(("name", "address"), RECIPES.items())
def test_a_recipe_with_an_address_is_refused_by_field_value_and_fix(
    name: str, address: str
) -> None:
    values = load_recipe("portrait-tiny-smoke").model_dump()
    values["data"]["sources"] = [{"kind": "folder", "path": "x", "license": "", "mixture": "anime"}]
    *above, last = name.split(".")
    section: Any = values
    for part in above:
        section = section[int(part) if part.isdigit() else part]
    section[last] = address
    with pytest.raises(RecipeError) as refused:
        validate(Recipe, values, "mine.yaml")
    line = str(refused.value).splitlines()[1]
    assert name in line and address in line and "give" in line


COMMANDS = {
    "distill": "--runs s3://bucket/runs",
    "export": "latest --to s3://bucket/model",
    "sample": "--image face.png --out gs://bucket/video.mp4",
    "track": "--runs s3://bucket/runs",
    "compare": "--runs s3://bucket/runs",
    "schedule": "--history s3://bucket/history.jsonl",
    "evaluate": "--model s3://bucket/model",
    "plan": "--rates s3://bucket/rates.json",
    "curate": "--data_root gs://bucket/data",
    "finetune": "--resume latest --runs s3://bucket/runs",
}


@pytest.mark.parametrize(("job", "words"), COMMANDS.items())
def test_a_flag_with_an_address_ends_the_job_with_2_and_without_a_traceback(
    job: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(job, words.split())
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    flag, value = words.split()[-2:]
    assert ended.value.code == 2
    assert flag.lstrip("-") in said and value.partition("://")[2] in said and "give" in said


FLOATS = [
    ("sample", flag)
    for flag in ("seconds", "shift", "guidance", "pull", "strength", "image_guidance")
] + [("plan", "mfu")]


@pytest.mark.parametrize(("job", "flag"), FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_is_refused(
    job: str, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--{flag}={value}"]
    with pytest.raises(SystemExit) as ended:
        parse(job, words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and flag in said and "finite" in said


def test_a_job_that_may_not_write_its_runs_ends_with_2_and_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended, refusing("distill"):
        RunDirectory.create("/proc/nowhere", load_recipe("portrait-tiny-smoke"))
    first, *rest = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "--runs /proc/nowhere" in first and "give another folder" in first
    assert rest == ["See python jobs/distill.py --help"]
    with pytest.raises(ZeroDivisionError), refusing("distill"):
        raise ZeroDivisionError
