"""Reading and writing video and pictures."""
