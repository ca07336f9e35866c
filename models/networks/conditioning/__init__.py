"""Conditions of a video, and the encoders of prompts and first frames."""
