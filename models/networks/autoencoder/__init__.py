"""The video VAE, and closed forms of its encoder and decoder for small machines."""
