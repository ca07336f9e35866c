"""Checkpoints: how training state is written, committed, mirrored and read back."""
