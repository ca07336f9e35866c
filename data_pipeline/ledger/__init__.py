"""What is known about every clip, and what a policy decides from it."""
