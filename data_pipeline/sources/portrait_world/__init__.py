"""Procedural talking portraits: endless training video, one clip per seed."""
