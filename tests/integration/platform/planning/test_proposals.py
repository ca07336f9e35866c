"""The layouts that a plan proposes are those that fit, the fastest first."""

from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.planning.plan import changed, plan
from magicdistill.platform.planning.proposals import describe_proposals, propose

FORTY, EIGHT = "magic141-4step-40xh100", "magic141-4step-8xh100"


def test_the_fastest_layout_that_fits_forty_gpus_is_the_recipes_own():
    made = plan(load_recipe(FORTY))
    best = propose(made)[0]
    assert changed(made.recipe, best.change) == made.recipe, list(describe_proposals(made))


def test_proposals_fit_and_are_no_slower_than_what_follows():
    layouts = propose(plan(load_recipe(EIGHT)), count=9)
    seconds = [layout.made.seconds_per_cycle or 0 for layout in layouts]
    assert len(layouts) > 2 and seconds == sorted(seconds)
    assert all(layout.made.fits for layout in layouts)
    batches = {layout.made.recipe.schedule.batch_size for layout in layouts}
    workers = {layout.made.recipe.cluster.num_workers for layout in layouts}
    assert batches == {4} and workers == {8}


def test_where_no_layout_fits_that_is_said():
    made = plan(load_recipe(FORTY, ["--cluster.gpus_per_worker", "0.1"]))
    assert list(describe_proposals(made)) == [
        "no layout of recomputation, sequence groups and micro-batches fits on these GPUs"
    ]
