"""Losses as pure functions of networks and batches, and the methods composed of them."""
