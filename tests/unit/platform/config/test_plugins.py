"""Modules that recipes name: imported before the recipe is read, and refused where they are not."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from magicdistill.platform.config import plugins
from magicdistill.platform.config.overrides import RecipeError
from magicdistill.platform.config.recipe import Recipe, load_recipe
from tests.registries import registries_restored

ROOT = Path(__file__).parents[4]
MODULE = """
from typing import Literal
from magicdistill.models.methods.base import MethodConfig
from magicdistill.models.methods.registry import METHODS

@METHODS.register
class Toy(MethodConfig):
    name: Literal["{name}"] = "{name}"
    strength: float = 0.5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with modules that register the methods toy and other."""
    for name in ("toy", "other"):
        (tmp_path / f"{name}_module.py").write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    with registries_restored():
        yield tmp_path


def child(base: Path, text: str, name: str = "child") -> Path:
    path = base.with_name(f"{name}.yaml")
    path.write_text(f"extends: {base.name}\n{text}")
    return path


def test_a_recipe_uses_a_method_of_its_plugin(base: Path) -> None:
    path = child(base, "plugins: [toy_module]\nmethod: {name: toy, strength: 2}\n")
    assert load_recipe(path).method.model_dump() == {"name": "toy", "strength": 2}


def test_what_a_recipe_extends_brings_its_plugins(base: Path) -> None:
    first = child(base, "plugins: [toy_module]\nmethod: {name: toy}\n", "first")
    second = child(first, "plugins: [other_module]\nmethod: {strength: 3}\n", "second")
    recipe = load_recipe(second)
    assert recipe.plugins == ("toy_module", "other_module")
    assert recipe.method.model_dump() == {"name": "toy", "strength": 3}


def test_a_flag_names_a_plugin_and_what_it_registers(base: Path) -> None:
    flags = ["--plugins", "toy_module", "--method.name", "toy", "--method.strength", "4"]
    recipe = load_recipe(base, flags)
    assert recipe.plugins == ("toy_module",)
    assert recipe.method.model_dump() == {"name": "toy", "strength": 4}


def test_a_worker_that_reads_the_recipe_imports_its_plugins(base: Path, folder: Path) -> None:
    recipe = load_recipe(child(base, "plugins: [toy_module]\nmethod: {name: toy}\n"))
    code = (
        "import sys; from magicdistill.platform.config.recipe import Recipe;"
        "print(Recipe.model_validate_json(sys.argv[1]).method.name)"
    )
    paths = f"{ROOT}:{folder}"
    command = [sys.executable, "-c", code, recipe.model_dump_json()]
    found = subprocess.run(command, env={"PYTHONPATH": paths}, capture_output=True, text=True)
    assert (found.stdout.strip(), found.returncode) == ("toy", 0), found.stderr


def test_the_job_tells_its_workers_what_it_has_loaded(base: Path) -> None:
    plugins.load_plugins(())
    before = set(plugins.worker_environment().get("env_vars", {}).values())
    load_recipe(child(base, "plugins: [toy_module]\n"))
    after = plugins.worker_environment()
    assert after["env_vars"][plugins.VARIABLE].endswith("toy_module")
    assert after["env_vars"][plugins.VARIABLE] not in before
    assert after["worker_process_setup_hook"].endswith("plugins.load_in_worker")


def test_no_plugins_leave_no_trace_in_a_recipe(base: Path) -> None:
    assert "plugins" not in json.loads(load_recipe(base).model_dump_json())


def test_a_module_that_is_not_there_is_refused_with_the_fix(base: Path) -> None:
    path = child(base, "plugins: [no_such_module]\n")
    with pytest.raises(RecipeError, match=r"child\.yaml: plugins: .*no_such_module.*PYTHONPATH"):
        load_recipe(path)
    values = load_recipe(base).model_dump() | {"plugins": ["no_such_module"]}
    with pytest.raises(ValueError, match="no_such_module"):
        Recipe.model_validate(values)


def test_a_module_that_breaks_is_refused_with_its_error(base: Path, folder: Path) -> None:
    (folder / "broken_module.py").write_text("1 / 0\n")
    with pytest.raises(RecipeError, match=r"broken_module.*ZeroDivisionError"):
        load_recipe(child(base, "plugins: [broken_module]\n"))


def test_an_installed_package_announces_its_plugin(base: Path, folder: Path) -> None:
    record = folder / "toys-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[magicdistill.plugins]\ntoys = toy_module\n")
    plugins._installed.cache_clear()
    try:
        recipe = load_recipe(child(base, "method: {name: toy}\n"))
    finally:
        plugins._installed.cache_clear()
    assert (recipe.method.name, recipe.plugins) == ("toy", ())
