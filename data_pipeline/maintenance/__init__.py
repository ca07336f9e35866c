"""Verify ledger and latents, compare samples of latents with their clips, and remove films."""
