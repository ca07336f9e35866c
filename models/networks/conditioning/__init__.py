"""What a video is generated from, and the encoders of prompts and first frames."""
