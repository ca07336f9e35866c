"""Engines, by which a role is trained: plain torch or DeepSpeed, clipping and averaged weights."""
