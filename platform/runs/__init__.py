"""The folder of a run, what it was made with, and what a job prints."""
