"""constraints.txt pins what pyproject.toml asks for."""

import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def test_every_requirement_has_a_pin_that_it_accepts() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = map(Requirement, chain(project["dependencies"], *extras))
    unmet = [
        str(requirement)
        for requirement in requirements
        if versions.get(canonicalize_name(requirement.name), "none") not in requirement.specifier
    ]
    assert unmet == []
