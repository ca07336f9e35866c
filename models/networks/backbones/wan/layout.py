"""What the network of Wan takes and where its features end, and the call of its pipeline."""

STOCK_CALL = """```python
from functools import partial

import torch
from diffusers import {pipeline}
from diffusers.utils import load_image
from safetensors.torch import load_file

folder = "this folder"
pipeline = {pipeline}.from_pretrained(folder, text_encoder=None, tokenizer=None)
times = [1 - step / {num_steps} for step in range({num_steps})]
scheduler = pipeline.scheduler
scheduler.set_timesteps = partial(scheduler.set_timesteps, sigmas=times)
video = pipeline(
    load_image("first frame").resize(({width}, {height})),
    **load_file(f"{{folder}}/null_prompt.safetensors"),
    num_frames={num_frames},
    height={height},
    width={width},
    num_inference_steps={num_steps},
    guidance_scale={guidance:g},
    generator=torch.Generator().manual_seed(0),
    output_type="pt",
).frames
```

The pipeline asks its scheduler for a grid of times that ends before 0; the network was trained on
the one that the line with `set_timesteps` gives. A network that takes CLIP's tokens of the image
was trained on zeros in their place where `recipe.yaml` has no `data.prompts`: give
`image_embeds=torch.zeros(1, 257, 1280)` then.
"""
NUM_TEXT_TOKENS = 512
"""Text tokens of the published networks, padding included, which they attend to."""
NUM_IMAGE_TOKENS = 257
"""Tokens that CLIP makes of the first frame: its patches and the class."""


def num_feature_blocks(num_layers: int) -> int:
    """Return how many blocks come before the discriminator's features: half of them.

    The paper's backbone has single-stream blocks, of which the discriminator copies the first one,
    a third of the way through. Wan's blocks are all alike; the half is our choice.
    """
    return num_layers // 2
