import pytest

from magicdistill.platform.cluster.node_layout import (
    LayoutError,
    demand_whole_groups,
    describe_nodes,
)


def test_every_node_is_named_with_its_ranks():
    lines = list(describe_nodes(["a"] * 4 + ["b"] * 4))
    assert lines == ["ranks 0 to 3 are on node a", "ranks 4 to 7 are on node b"]


@pytest.mark.parametrize(("nodes", "size"), [("aaabbb", 3), ("aabb", 2), ("aab", 1), ("aaaa", 4)])
def test_groups_that_divide_the_workers_of_every_node_are_taken(nodes: str, size: int):
    demand_whole_groups(list(nodes), size)


@pytest.mark.parametrize(
    ("nodes", "size", "said"),
    [
        ("aaabbb", 2, "ranks 2 to 3 share their samples, and are on a and b; .* are 3, 3"),
        ("aaaaabbbbb", 4, "parallel 4: ranks 4 to 7 .* a and b; .* 5, 5"),
        ("aabbcc", 6, "ranks 0 to 5 .* on a and b and c; .* 2, 2, 2"),
    ],
)
def test_a_group_between_nodes_is_refused_with_its_ranks(nodes: str, size: int, said: str):
    with pytest.raises(LayoutError, match=said):
        demand_whole_groups(list(nodes), size)
