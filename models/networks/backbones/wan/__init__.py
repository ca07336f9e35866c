"""Wan 2.1 and Wan 2.2 A14B, image-to-video."""
