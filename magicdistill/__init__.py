"""MagicDistillation: distil many-step video diffusion models to four steps and to one.

The code lives in `models`, `data_pipeline`, `platform` and `jobs`, linked into this package.
"""

import gc

gc.set_threshold(10_000, 10, 1000)
"""The packages that a process imports make millions of objects, which need no looking through."""
