"""Scores of finished models, by a run's own table or by a protocol."""
