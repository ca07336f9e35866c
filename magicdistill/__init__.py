"""MagicDistillation: distil many-step video diffusion models to four steps and to one.

The code lives in `models`, `data_pipeline`, `platform` and `jobs`, linked into this package.
"""
