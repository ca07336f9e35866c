"""The families of transformers: what the rest asks of one, and those that there are."""
