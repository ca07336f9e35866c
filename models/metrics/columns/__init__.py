"""The columns of the table of scores: each metric says what it needs, measures and sums up to."""
