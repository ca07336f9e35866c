"""The Ray cluster, its nodes and ranks, and what happens when one is lost."""
