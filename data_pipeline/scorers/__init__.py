"""Scorers of clips, each in a file of its own: what curation measures and policies judge by."""
