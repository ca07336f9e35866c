"""Networks: the backbones at any size, the VAE, and what is attached to them."""
