"""What a rehearsal found, as a table for people."""

from collections.abc import Callable, Iterator, Sequence

from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.planning.plan import GIB
from magicdistill.platform.planning.rehearsal import Figure, RoleRehearsal, rehearse


def report_rehearsal(
    recipe: Recipe, progress: Callable[[str], object], show: Callable[[str], object]
) -> bool:
    """Rehearse a recipe and show its table; return whether all is in order and as planned.

    `progress` is told what comes next. Raises as `rehearse` does.
    """
    roles = list(rehearse(recipe, progress))
    show("\n".join(format_rehearsal(recipe, roles)))
    return all(role.is_in_order for role in roles)


def format_rehearsal(recipe: Recipe, roles: Sequence[RoleRehearsal]) -> Iterator[str]:
    """Yield the lines of the table: gradients, figures beside those of the plan, problems."""
    cluster = recipe.cluster
    yield (
        f"{recipe.name} rehearsed as rank 0 of {cluster.num_workers}, sequence parallel "
        f"{cluster.sequence_parallel}: one update of each role, one micro-batch"
    )
    yield f"{'role':<10} {'':<24} {'rehearsed':>11} {'planned':>11}   off by"
    for role in roles:
        gradients = f"{role.num_gradients} of {role.num_trained} parameters"
        yield f"{role.role:<10} {'gradients':<24} {gradients}"
        yield from (_line(role.role, figure) for figure in role.figures)
        yield from (f"{role.role:<10} wrong: {problem}" for problem in role.problems)
    verdict = "as planned" if all(role.is_in_order for role in roles) else "NOT as planned"
    yield f"{recipe.name} goes {verdict}"


def _line(role: str, figure: Figure) -> str:
    unit, scale = ("PFLOP", 1e15) if figure.name == "operations" else ("GiB", GIB)
    share = figure.rehearsed / figure.planned - 1
    note = "" if figure.is_planned else "   too far: mend the plan or the code"
    return (
        f"{role:<10} {f'{figure.name}, {unit}':<24} {figure.rehearsed / scale:>11.4g} "
        f"{figure.planned / scale:>11.4g}   {share:+.1%}{note}"
    )
