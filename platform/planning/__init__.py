"""What a recipe needs of its GPUs, computed before the run: memory, time, data."""
