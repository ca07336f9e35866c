"""The video VAE and its closed-form halves."""
