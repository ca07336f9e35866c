"""The layouts that a plan proposes are those that fit, the fastest first."""

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.planning.plan import changed, plan
from magicdistill.platform.planning.proposals import describe_proposals, propose

FORTY, EIGHT = "magic141-4step-40xh100", "magic141-4step-8xh100"


def test_the_fastest_layout_of_forty_gpus_is_the_recipes_own_and_can_be_passed_back() -> None:
    made = plan(load_recipe(FORTY))
    layouts = propose(made)
    assert changed(made.recipe, layouts[0].change) == made.recipe
    head, *lines = describe_proposals(made, layouts)
    assert head == "the fastest layouts that fit:" and len(lines) == len(layouts)
    assert [line.endswith("(the recipe's)") for line in lines].count(True) == 1
    for line, layout in zip(lines, layouts, strict=True):
        flags = line.split("  ")[1].split()
        assert load_recipe(FORTY, flags) == layout.made.recipe, line
        assert "--engine.whole_numel" in flags


def test_proposals_fit_are_no_slower_than_what_follows_and_hold_the_recipes_own() -> None:
    """Here the recipe shards all parameters, and keeping a LoRA's whole gathers less."""
    made = plan(load_recipe(EIGHT, ["--engine.whole_numel", "0"]))
    layouts = propose(made, count=2)
    seconds = [round(layout.made.seconds_per_cycle or 0, 1) for layout in layouts]
    assert len(layouts) > 1 and seconds[:2] == sorted(seconds[:2])
    assert all(layout.made.fits for layout in layouts)
    assert sum(layout.made.recipe == made.recipe for layout in layouts) == 1
    recipes = [layout.made.recipe for layout in layouts]
    assert {r.schedule.batch_size for r in recipes} == {4}
    assert {r.cluster.num_workers for r in recipes} == {8}
    assert layouts[0].change["engine.whole_numel"] > 0
    lines = [layout.made.time_line for layout in layouts]
    assert lines[0] and made.time_line
    assert lines[0].gathered_bytes < made.time_line.gathered_bytes
    assert layouts[0].made.gpu_bytes > made.gpu_bytes


def test_where_no_layout_fits_that_is_said() -> None:
    made = plan(load_recipe(FORTY, ["--cluster.gpus_per_worker", "0.1"]))
    assert list(describe_proposals(made, propose(made))) == [
        "no layout of recomputation, sequence groups and micro-batches fits on these GPUs"
    ]
