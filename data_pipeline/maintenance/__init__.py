"""Verify what is stored, reconstruct samples of it, and remove films."""
