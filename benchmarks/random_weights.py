"""Random weights of a preset as a pipeline's folder, for runs that only show that they run.

`python -m benchmarks.random_weights wan-tiny DIR` writes DIR/transformer and DIR/vae, and with
`--experts` a second expert, DIR/transformer_2. The same seed gives the same weights.
"""

import argparse
from pathlib import Path

import torch

from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import build_transformer
from magicdistill.models.networks.weights import save_transformer
from magicdistill.platform.config.experts import LOW_NOISE, TRANSFORMER


def main() -> None:
    """Parse the command line and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=list(PRESETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    shapes = PRESETS[args.preset]
    for name in (TRANSFORMER, LOW_NOISE)[: 2 if args.experts else 1]:
        save_transformer(build_transformer(shapes.transformer), args.folder / name, torch.float32)
    VideoVae(build_autoencoder(shapes.vae)).save(args.folder / "vae")


if __name__ == "__main__":
    main()
