"""The training methods that a recipe chooses by name: what each is, and how it is built."""
