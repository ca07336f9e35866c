"""Trained networks in the formats that other programs read."""
