"""Losses as pure functions of networks and batches, and the training methods composed of them."""
