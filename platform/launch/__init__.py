"""What the jobs call: the command line, the frame of a job, and its steps."""
