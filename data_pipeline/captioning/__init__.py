"""Captions: who writes them, what is counted of their text, and what they cost."""
