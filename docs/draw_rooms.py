"""Write the pictures and tables of the rooms into docs/architecture.md, from the code itself.

`make docs` rewrites what stands between the markers `<!-- rooms -->` and `<!-- end of rooms -->`.
With `--check` the script writes nothing and exits with 1 where the page differs from the code;
`tests/unit/test_docs.py` runs it so.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
DRAWN = ("platform", "data_pipeline")
"""Folders with a picture: no two of their rooms import each other."""
LISTED = (*DRAWN, "models")
"""Folders with a table."""
SECTION = re.compile("(?<=<!-- rooms -->\n).*(?=<!-- end of rooms -->)", re.DOTALL)

Imports = Mapping[str, set[str]]
"""The rooms that each room imports from."""


def rooms(folder: str) -> list[str]:
    """Return the rooms of a folder: its packages, and the files that stand in none."""
    packages = [path.parent.name for path in (ROOT / folder).glob("*/__init__.py")]
    return sorted([*packages, *(path.name for path in (ROOT / folder).glob("*.py"))])


def imports_between_rooms(graph: grimp.ImportGraph, folder: str) -> Imports:
    """Return what the rooms of a folder import from each other, inside functions too."""

    def room(module: str) -> str:
        name = module.split(".")[2]
        return name if name in found else f"{name}.py"

    found: dict[str, set[str]] = {name: set() for name in rooms(folder)}
    here = {name for name in graph.modules if name.startswith(f"magicdistill.{folder}.")}
    for importer in here:
        for imported in graph.find_modules_directly_imported_by(importer) & here:
            if room(importer) != room(imported):
                found[room(importer)].add(room(imported))
    return found


def reduced(imports: Imports) -> Imports:
    """Leave out every arrow that a longer way implies: the transitive reduction."""

    def below(room: str) -> set[str]:
        return imports[room].union(*(below(other) for other in imports[room]))

    return {
        room: others - set().union(*(below(other) for other in others))
        for room, others in imports.items()
    }


def picture(imports: Imports) -> Iterator[str]:
    """Yield the lines of a mermaid flowchart, arrows from the importing room to the imported."""
    yield "```mermaid"
    yield "flowchart TD"
    for room in sorted(imports):
        yield f'    {node(room)}["{room}"]'
    for room, others in sorted(reduced(imports).items()):
        for other in sorted(others):
            yield f"    {node(room)} --> {node(other)}"
    yield "```"


def node(room: str) -> str:
    """Return the identifier of a room in mermaid, where some plain words are reserved."""
    return "room_" + room.removesuffix(".py")


def table(folder: str) -> Iterator[str]:
    """Yield the lines of a table of rooms, each with the first sentence of its docstring."""
    yield f"| `{folder}/` | what is in it |"
    yield "|---|---|"
    for room in rooms(folder):
        path = ROOT / folder / room
        file = path / "__init__.py" if path.is_dir() else path
        sentence = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[0]
        yield f"| `{room}{'/' * path.is_dir()}` | {sentence} |"


def section() -> str:
    """Return what stands between the markers."""
    graph = grimp.build_graph(*(f"magicdistill.{folder}" for folder in LISTED), cache_dir=None)
    lines = []
    for folder in LISTED:
        lines += ["", f"### {folder}/", ""]
        if folder in DRAWN:
            lines += [*picture(imports_between_rooms(graph, folder)), ""]
        lines += table(folder)
    return "\n".join([*lines, "", ""])


def main() -> int:
    """Rewrite the page, or compare it with the code; return the exit status."""
    before = PAGE.read_text()
    after = SECTION.sub(lambda _: section(), before)
    if "--check" in sys.argv[1:]:
        if after != before:
            print(f"{PAGE.relative_to(ROOT)} differs from the code: run `make docs`")
        return int(after != before)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
