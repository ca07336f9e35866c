from magicdistill.platform.cluster.node_layout import describe_nodes


def test_every_node_is_named_with_its_ranks():
    lines = list(describe_nodes(["a"] * 4 + ["b"] * 4, sequence_parallel=4))
    assert lines == ["ranks 0 to 3 are on node a", "ranks 4 to 7 are on node b"]


def test_a_sequence_group_between_nodes_is_told():
    lines = list(describe_nodes(["a"] * 3 + ["b"] * 3, sequence_parallel=2))
    assert len(lines) == 3
    assert lines[-1].startswith("ranks 2 to 3 share their samples over the network")
