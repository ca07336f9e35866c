"""Search in a corpus of images."""
