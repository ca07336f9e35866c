"""Training: Ray Train workers, the loop, the engines and what runs after each cycle."""
