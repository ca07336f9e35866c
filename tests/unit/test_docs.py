"""The documents lead to each other, and what they name exists."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from magicdistill.platform.config.recipe import RECIPES

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS, *sorted((ROOT / "assets").rglob("*.md"))]
TOP = ("assets", "benchmarks", "data_pipeline", "deploy", "docs", "jobs", "models", "platform")
PATH = re.compile(rf"(?<![\w/.*-])(?:{'|'.join((*TOP, 'tests'))})/[\w./-]*\w")
WRITTEN_BY_PROGRAMS = ("benchmarks/results", "docs/_build")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PYTHON_FILE = re.compile(r"(?<![\w/.<-])[\w/]+\.py\b")
TEST_NAME = re.compile(r"`(test_\w+)\.py`(?:: ((?:`[^`]+`(?:, )?)+))?")
JOB = re.compile(r"(?:python |-- )jobs/(\w+)\.py([^\n`]*)")
MAKE = re.compile(r"^(?:\w+=\S+ )*make ([a-z0-9-]+)|`make ([a-z0-9-]+)", re.MULTILINE)
PLACEHOLDER = "RECIPE"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
each_doc = pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file and the anchor of every link within the repository."""
    for target in LINK.findall(page.read_text()):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def missing(page: Path, pattern: re.Pattern[str], exists: Callable[[str], bool]) -> list[str]:
    return sorted({found for found in pattern.findall(page.read_text()) if not exists(found)})


@each_doc
def test_every_document_is_linked_from_the_readme_and_the_index(doc: Path) -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        assert doc == page or doc in {target for target, _ in links(page)}, page.name


@each_page
def test_a_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    broken = [
        f"{target.name}#{anchor}"
        for target, anchor in links(page)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]
    assert broken == []


@each_page
def test_a_path_that_a_page_names_exists(page: Path) -> None:
    def exists(path: str) -> bool:
        return (ROOT / path).exists() or path.startswith(WRITTEN_BY_PROGRAMS)

    assert missing(page, PATH, exists) == []


@each_page
def test_a_python_file_that_a_page_names_exists_somewhere(page: Path) -> None:
    folders = (*TOP, "tests", "magicdistill")
    files = [f"/{file.relative_to(ROOT)}" for top in folders for file in (ROOT / top).rglob("*.py")]
    assert missing(page, PYTHON_FILE, lambda name: any(f.endswith(f"/{name}") for f in files)) == []


def test_a_test_that_a_page_names_is_in_the_file_that_it_names() -> None:
    """The pages shorten names by an ellipsis: `scale_one_is_the_prompt…`."""
    wrong = []
    for page in PAGES:
        for stem, names in TEST_NAME.findall(page.read_text()):
            code = "".join(file.read_text() for file in (ROOT / "tests").rglob(f"{stem}.py"))
            parts = [re.sub(r"…?(\[.*)?$", "", name) for name in re.findall("`(.+?)`", names)]
            wrong += [f"{stem}.py has no {part}" for part in parts if f"test_{part}" not in code]
    assert wrong == []


@each_page
def test_a_command_names_a_job_and_a_recipe_that_exist(page: Path) -> None:
    text = page.read_text()
    recipes = {path.stem for path in RECIPES.rglob("*.yaml")} | {PLACEHOLDER}
    recipes |= set(re.findall(r"^# (\S+\.yaml)$", text, re.MULTILINE))  # shown on the page itself
    wrong = []
    for job, arguments in JOB.findall(text):
        named = re.findall(r"--(?:recipe|protocol)[ =](\S+)", arguments)
        wrong += [] if (ROOT / "jobs" / f"{job}.py").exists() else [job]
        wrong += [name for name in named if name not in recipes]
    assert wrong == []


@each_page
def test_make_has_the_targets_that_a_page_names(page: Path) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {one or other for one, other in MAKE.findall(page.read_text())}
    assert named - set(targets) == set()


def test_the_rooms_are_drawn_as_the_code_has_them() -> None:
    command = [sys.executable, "docs/draw_rooms.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
