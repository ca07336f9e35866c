"""HunyuanVideo, text-to-video and image-to-video, and SkyReels-V1."""
