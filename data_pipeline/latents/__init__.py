"""The latent cache: what it holds, in which order it is read, and how it is distributed."""
