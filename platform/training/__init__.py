"""Training: Ray Train workers, the loop and what runs after each cycle."""
