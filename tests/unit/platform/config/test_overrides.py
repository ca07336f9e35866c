"""Merging, validation and flags, on small configurations of every shape."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from magicdistill.models.config import Config
from magicdistill.models.registry import Registry
from magicdistill.platform.config.overrides import (
    RecipeError,
    alternatives,
    apply_overrides,
    merge,
    validate,
)


class Optimizer(Config):
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = 1.0


class Magic(Config):
    name: Literal["magic"]
    alpha_weak: float = 0.25
    weight: float = 1.0


class Finetune(Config):
    name: Literal["finetune"]
    weight: float = 1.0


class Folder(Config):
    kind: Literal["folder"] = "folder"
    path: str


class Toy(Config):
    name: str
    method: Annotated[Magic | Finetune, Registry("method", Config, Magic, Finetune, tag="name")]
    optimizers: dict[str, Optimizer] = Field(default_factory=dict)
    sources: tuple[Folder, ...] = ()
    flip: bool = True
    size: int = 3


VALUES = {
    "name": "toy",
    "method": {"name": "magic", "alpha_weak": 0.5, "weight": 2.0},
    "optimizers": {"generator": {"lr": 0.1}, "critic": {}},
    "sources": [{"path": "here"}],
}


def toy(*flags: str) -> Toy:
    return apply_overrides(validate(Toy, VALUES, "toy.yaml"), flags, program="toy")


@pytest.mark.parametrize(
    ("flags", "path", "value"),
    [
        (["--size", "7"], ["size"], 7),
        (["--flip", "false"], ["flip"], False),
        (["--flip=True"], ["flip"], True),
        (["--method.alpha_weak", "1"], ["method", "alpha_weak"], 1.0),
        (["--method.alpha-weak", "1"], ["method", "alpha_weak"], 1.0),
        (["--optimizers.critic.betas", "0", "0.5"], ["optimizers", "critic", "betas"], [0.0, 0.5]),
        (["--optimizers.critic.clip", "2"], ["optimizers", "critic", "clip"], 2.0),
        (["--optimizers.critic.clip", "null"], ["optimizers", "critic", "clip"], None),
        (["--sources.0.path", "there"], ["sources", 0, "path"], "there"),
    ],
)
def test_a_flag_sets_its_field_in_its_type(
    flags: list[str], path: list[str | int], value: object
) -> None:
    found: Any = toy(*flags).model_dump(mode="json")
    for part in path:
        found = found[part]
    assert found == value
    assert type(found) is type(value)


def test_no_flags_change_nothing() -> None:
    assert toy() == validate(Toy, VALUES, "toy.yaml")


def test_choosing_another_alternative_keeps_the_fields_that_both_have() -> None:
    assert toy("--method.name", "finetune").method == Finetune(name="finetune", weight=2.0)


def test_the_fields_of_the_chosen_alternative_are_flags() -> None:
    assert toy("--method.name", "finetune", "--method.weight", "5").method.weight == 5


def test_alternatives_are_listed_with_the_present_one_first() -> None:
    assert alternatives(toy()) == {"method.name": ("magic", "finetune")}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method.alpha_weka", "1"], ["--method.alpha_weak"]),
        (["--method.alpha_weak", "much"], ["--method.alpha_weak", "'much'"]),
        (["--optimizers.critic.lr", "-1"], ["optimizers.critic", "lr", "greater than 0", "-1"]),
    ],
)
def test_a_wrong_flag_exits_with_2_and_names_the_field_and_the_value(
    flags: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        toy(*flags)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert [text for text in said if text not in error] == []


def test_an_alternative_that_does_not_exist_is_refused_with_all_there_are() -> None:
    with pytest.raises(RecipeError, match=r"--method\.name magick: choose one of finetune, magic$"):
        toy("--method.name", "magick")


@pytest.mark.parametrize(
    "flags",
    [["--method.name", "magic", "--method.name=finetune"], ["--size", "1", "--size", "2"]],
)
def test_of_a_repeated_flag_the_last_one_counts(flags: list[str]) -> None:
    assert toy(*flags) == toy(*flags[-2:] if "=" not in flags[-1] else flags[-1:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sise": 1}, "unknown key sise; did you mean size?"),
        ({"alpha_weak": 1}, "unknown key alpha_weak; did you mean method.alpha_weak?"),
        (
            {"method": {"name": "magic", "alpha_weka": 1}},
            "unknown key method.alpha_weka; did you mean method.alpha_weak?",
        ),
        (
            {"optimizers": {"critic": {"learning": 1, "rl": 1}}},
            "unknown key optimizers.critic.rl; did you mean optimizers.critic.lr?",
        ),
        (
            {"sources": [{"path": "a"}, {"path": "b", "pth": "c"}]},
            "unknown key sources.1.pth; did you mean sources.1.path?",
        ),
        ({"size": "big"}, "size: 'big': Input should be a valid integer"),
        ({"optimizers": {"critic": {"lr": 0}}}, "optimizers.critic.lr: 0: Input should be gre"),
        ({"sources": [{}]}, "sources.0.path is missing"),
        (
            {"method": {"name": "magick"}},
            "method.name: 'magick' is no method; there are magic, finetune",
        ),
    ],
)
def test_a_wrong_value_in_a_file_is_told_with_its_place_and_the_fix(
    change: dict[str, object], said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        validate(Toy, VALUES | change, "toy.yaml")
    assert "toy.yaml" in str(caught.value)
    assert said in str(caught.value)


def test_merging_goes_section_by_section() -> None:
    merged = merge(
        Toy,
        VALUES,
        {"optimizers": {"generator": {"clip": 1.0}, "new": {"lr": 1.0}}, "sources": []},
    )
    assert merged == VALUES | {
        "optimizers": {"generator": {"lr": 0.1, "clip": 1.0}, "critic": {}, "new": {"lr": 1.0}},
        "sources": [],
    }


def test_merging_another_alternative_drops_what_it_does_not_have() -> None:
    merged = merge(Toy, VALUES, {"method": {"name": "finetune"}})
    assert merged["method"] == {"name": "finetune", "weight": 2.0}
