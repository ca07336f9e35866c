"""Recipes of the impatient: what is refused, in which words, and what is not."""

from pathlib import Path

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.planning.preflight import demand_trainable, demand_weights
from tests.integration.platform.config.attacks_on_recipes import ACCEPTED_RECIPES, REFUSED_RECIPES

RAW = ("- a", "a: [", "\x00")
"""Texts that nothing is put before."""


def fault(path: Path, text: str) -> str | None:
    """Return why a recipe is refused."""
    path.write_text(
        text if "extends:" in text or text in RAW else f"extends: portrait-tiny\n{text}\n"
    )
    try:
        recipe = load_recipe(path)
        demand_trainable(recipe)
        demand_weights(recipe)
    except RecipeError as error:
        return str(error)
    return None


def test_what_is_wrong_in_a_recipe_is_refused_in_a_sentence(tmp_path, tell):
    found = {text: fault(tmp_path / "attack.yaml", text) for text in REFUSED_RECIPES}
    tell(f"{len(found)} recipes refused")
    assert {
        text: said
        for text, said in found.items()
        if said is None or REFUSED_RECIPES[text] not in said
    } == {}


def test_what_is_right_in_a_recipe_is_accepted(tmp_path, tell):
    found = {text: fault(tmp_path / "attack.yaml", text) for text in ACCEPTED_RECIPES}
    tell(f"{len(found)} recipes accepted")
    assert {text: said for text, said in found.items() if said is not None} == {}


def test_of_a_repeated_flag_the_last_one_counts_also_for_alternatives():
    twice = load_recipe("portrait-tiny", ["--method.name", "magic", "--method.name=dmd2"])
    assert twice == load_recipe("portrait-tiny", ["--method.name", "dmd2"])
