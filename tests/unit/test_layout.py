"""The layout that lets `platform` be a folder of this project and a module of Python's."""

import ast
import os
import platform
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import grimp
import jaxtyping
import pytest
import torch

from magicdistill.models import config
from magicdistill.models.diffusion import flow

ROOT = Path(__file__).parents[2]
ROOMS = ("models", "data_pipeline", "platform", "jobs")
LIBRARIES_OF_MODELS = {
    "magicdistill",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "einops",
    "safetensors",
    "numpy",
    "scipy",
    "pydantic",
    "pydantic_core",
    "jaxtyping",
}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def folders_of_code() -> list[Path]:
    return sorted({file.parent for room in ROOMS for file in (ROOT / room).rglob("*.py")})


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_no_init_of_its_own(room: str) -> None:
    assert (ROOT / room).is_dir()
    assert not (ROOT / room / "__init__.py").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_linked_into_the_package_by_a_relative_link(room: str) -> None:
    link = ROOT / "magicdistill" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..") / room


def test_deeper_folders_are_packages_so_that_the_import_linter_sees_them() -> None:
    deeper = [folder for folder in folders_of_code() if folder.parent != ROOT]
    assert [folder for folder in deeper if not (folder / "__init__.py").is_file()] == []


def test_the_standard_platform_module_wins_where_the_root_is_on_the_path() -> None:
    code = "import platform; print(platform.system())"
    result = run(sys.executable, "-c", code, PYTHONPATH=str(ROOT))
    assert (result.stdout.strip(), result.stderr) == (platform.system(), "")


def test_the_package_is_this_checkout() -> None:
    assert Path(config.__file__).resolve() == ROOT / "models" / "config.py"


def test_git_ignores_no_folder_of_code() -> None:
    # Ray's upload of the working directory obeys .gitignore.
    paths = [folder / "new.py" for folder in [*folders_of_code(), ROOT / "tests" / "unit"]]
    paths += [ROOT / room / "weights" / "new.safetensors" for room in ROOMS]
    result = run("git", "check-ignore", "--no-index", *map(str, paths))
    assert (result.stdout, result.returncode) == ("", 1), result.stderr


def test_a_job_bears_no_name_that_the_stack_imports() -> None:
    # `python jobs/x.py` puts jobs/ first on the path, where x.py would hide any module x.
    names = {file.stem for file in (ROOT / "jobs").glob("*.py")}
    assert {name for name in names if find_spec(name)} == set()


def test_models_knows_its_few_libraries_and_no_others() -> None:
    graph = grimp.build_graph("magicdistill.models", include_external_packages=True, cache_dir=None)
    known = {module.split(".")[0] for module in graph.modules}
    assert known - sys.stdlib_module_names <= LIBRARIES_OF_MODELS


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions count: a circle that one of them hides is a circle."""
    packages = [f"magicdistill.{room}" for room in ROOMS]
    graph = grimp.build_graph(*packages, cache_dir=None)
    imports = {
        module: graph.find_modules_directly_imported_by(module) - {module}  # a script by its name
        for module in graph.modules
    }
    try:
        tuple(TopologicalSorter(imports).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", folders_of_code(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_folder_has_more_than_fifteen_files_of_code(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 15


@pytest.mark.parametrize("folder", folders_of_code(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_room_says_in_a_sentence_what_it_is(folder: Path) -> None:
    if (file := folder / "__init__.py").exists():
        sentence = ast.get_docstring(ast.parse(file.read_text()))
        assert sentence and sentence.endswith(".")


def test_shapes_at_public_borders_are_checked_under_pytest() -> None:
    one_sigma_per_pixel = torch.zeros(2, 3)
    with pytest.raises(jaxtyping.TypeCheckError, match="sigma"):
        flow.per_sample(one_sigma_per_pixel, torch.zeros(2, 3))
