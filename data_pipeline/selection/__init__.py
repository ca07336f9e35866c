"""Select the clips of a config and publish them as a version of the latent cache."""
