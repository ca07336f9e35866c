"""Which ways of generating a run is judged beside."""

from dataclasses import replace
from pathlib import Path

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.evaluation.evaluate_run import Scores, format_table
from magicdistill.platform.inference.variants import variants

STUDENT = Path("student")


def ways(name: str) -> list[tuple[str, str | None, str, int]]:
    found = variants(load_recipe(name), STUDENT)
    return [(way.name, way.weights, way.sampler.name, way.sampler.num_steps) for way in found]


def test_a_student_of_pairs_is_judged_beside_their_maker_whole_and_cut() -> None:
    teacher, maker = "assets/portrait-tiny/teacher", "assets/portrait-tiny/student-4step"
    assert ways("portrait-tiny-1step") == [
        ("teacher", teacher, "euler", 28),
        ("euler", teacher, "euler", 1),
        ("4-step", maker, "euler", 4),
        ("4-step cut", maker, "euler", 1),
        ("student", "student", "euler", 1),
    ]


def test_a_few_step_student_is_judged_beside_its_teacher() -> None:
    assert [way[0] for way in ways("portrait-tiny")] == ["teacher", "euler", "student"]
    assert [way[0] for way in ways("portrait-tiny-teacher")] == ["teacher"]


def test_the_table_says_on_how_many_clips_a_distance_is_taken() -> None:
    old = Scores("student", "euler", 4, 0.026, 0.016, 0.97, 1.26)
    head, new, before = format_table([replace(old, num_clips=128), old]).splitlines()
    assert head.split()[3:7] == ["FD", "proxy", "n", "motion/real"]
    assert new.split()[4:7] == ["0.016", "128", "0.97"]
    assert before.split()[4:6] == ["0.016", "0.97"]
