"""Prepare the training of a VAE: clip windows of pixels, and its closed-form encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.io.whole_files import write_whole
from magicdistill.data_pipeline.latents.windows import read_windows
from magicdistill.data_pipeline.pipeline import select_clips
from magicdistill.models.networks.autoencoder.patch_code import set_patch_code
from magicdistill.models.networks.autoencoder.patch_decoder import PatchDecoder
from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.presets import ModelConfig
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.runs import logs
from magicdistill.platform.runs.run_directory import RunDirectory

CODE_CLIPS = 400


def prepare_pixels(recipe: Recipe, run: RunDirectory, root: AnyPath) -> Path:
    """Decode the windows of the accepted clips into one file and set the VAE's closed-form half.

    `root` is the place of clips and ledger.
    """
    path = run.path / "windows.npy"
    if not path.exists():
        clips = select_clips(recipe.data, root)
        logs.say(f"decoding {len(clips)} clips")
        windows = read_windows(clips, recipe.data.bucket, recipe.data.windows_per_clip)
        pixels = np.concatenate(list(windows))

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # to a path it would add a suffix
                np.save(file, pixels)

        write_whole(path, write)
    if recipe.model.vae is None:
        folder = run.path / "initial"
        torch.manual_seed(recipe.seed)
        initial_vae(recipe.model, np.load(path, mmap_mode="r")).save(folder)
        model = recipe.model.model_copy(update={"vae": str(folder)})
        run.store(recipe.model_copy(update={"model": model}))
    return path


def initial_vae(model: ModelConfig, windows: np.ndarray) -> VideoVae:
    """Build a VAE with the patch code of `windows`, uint8 (n t y x 3), and its linear inverse."""
    chosen = windows[:: max(1, len(windows) // CODE_CLIPS)][:CODE_CLIPS]
    pixels = torch.from_numpy(chosen).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    autoencoder: Any = build_autoencoder(model.shapes.vae)
    set_patch_code(autoencoder, pixels)
    decoder = None
    if model.shapes.patch_decoder is not None:
        decoder = PatchDecoder(model.shapes.patch_decoder)
        with torch.no_grad():
            latents = torch.cat([VideoVae(autoencoder).encode(part) for part in pixels.split(8)])
        decoder.set_linear_inverse(latents, pixels)
    return VideoVae(autoencoder, patch_decoder=decoder)
