"""Networks: the diffusers classes of the 13B model, at any size, and what is attached to them."""
