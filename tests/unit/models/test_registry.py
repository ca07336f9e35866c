from typing import Annotated, Literal

import pytest
from pydantic import ValidationError

from magicdistill.models.config import Config
from magicdistill.models.registry import Registry


class Shape(Config):
    kind: str


class Circle(Shape):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Shape):
    kind: Literal["square", "box"] = "square"


SHAPES = Registry("shape", Shape, Circle, Square)


class Drawing(Config):
    shapes: tuple[Annotated[Shape, SHAPES], ...]


def test_a_name_chooses_the_configuration() -> None:
    drawing = Drawing.model_validate({"shapes": [{"kind": "circle", "radius": 2}, {"kind": "box"}]})
    assert drawing.shapes == (Circle(radius=2), Square(kind="box"))


def test_a_configuration_comes_back_from_its_json() -> None:
    drawing = Drawing(shapes=(Circle(radius=3), Square()))
    assert Drawing.model_validate_json(drawing.model_dump_json()) == drawing


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"kind": "cirle"}, "kind: 'cirle' is no shape; there are circle, square, box"),
        ({}, "kind: nothing is no shape"),
        (3, "a shape is a mapping with the key kind"),
        ({"kind": "circle", "width": 1}, "shapes.0.width"),
    ],
)
def test_what_is_none_is_refused(shape: object, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Drawing.model_validate({"shapes": [shape]})
    assert message in str(refused.value)


def test_a_name_is_given_once() -> None:
    class Round(Shape):
        kind: Literal["circle"] = "circle"

    with pytest.raises(ValueError, match=r"shape circle is .*\.Circle"):
        SHAPES.register(Round)
    with pytest.raises(ValueError, match="Drawing is no Shape"):
        SHAPES.register(Drawing)  # type: ignore[arg-type]
    assert SHAPES.register(Circle) is Circle
