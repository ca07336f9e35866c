"""A VAE is one of a family: what compresses otherwise is planned, checked and refused by it."""

import json
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from magicdistill.models.networks.autoencoder.hunyuan_video import HunyuanVideoVaeConfig
from magicdistill.models.networks.autoencoder.registry import VAES, demand_vae, vae_named
from magicdistill.models.networks.autoencoder.vae import VideoVae
from magicdistill.models.networks.presets import PRESETS
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.validation import RecipeError
from magicdistill.platform.planning.flops import num_frames, sample_of
from magicdistill.platform.planning.preflight import demand_trainable
from tests.registries import registries_restored


class Coarse(HunyuanVideoVaeConfig):
    """Half the latents along each side, and twice the frames in each."""

    class_name: ClassVar = "Coarse"
    time_compression: ClassVar = 8
    space_compression: ClassVar = 16

    kind: Literal["coarse"] = "coarse"


@pytest.fixture
def coarse():
    """A preset with a VAE of another compression."""
    tiny = PRESETS["portrait-tiny"]
    with registries_restored():
        VAES.register(Coarse)
        vae = Coarse(**tiny.vae.model_dump(exclude={"kind"}))
        yield PRESETS.register("coarse", tiny.model_copy(update={"vae": vae}))


def test_a_sample_is_as_large_as_the_presets_vae_makes_it(coarse) -> None:
    bucket = load_recipe("portrait-tiny").data.bucket
    sample = sample_of(bucket, coarse)
    assert (sample.frames, sample.height, sample.width) == (3, 4, 4)
    assert num_frames(sample, coarse.vae) == bucket.num_frames == 17


def test_clips_that_the_presets_vae_cannot_divide_are_refused(coarse) -> None:
    changes = ["--data.bucket.height", "80", "--data.bucket.num_frames", "13"]
    recipe = load_recipe("portrait-tiny", ["--model.preset", "coarse", *changes])
    with pytest.raises(RecipeError) as refused:
        demand_trainable(recipe)
    assert "13x80x64@24: give 8k+1 frames, as the VAE encodes them" in str(refused.value)
    assert "80 pixels are no whole patches; choose a multiple of 32" in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"_class_name": "Coarse"},
            "vae is a Coarse, and the preset's networks take the",
        ),
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL is the VAE of no registered family"),
        (
            {"_class_name": "AutoencoderKLHunyuanVideo", "latent_channels": 4},
            "vae has 4 latent channels, and the preset 16",
        ),
    ],
)
def test_the_vae_of_another_family_is_refused(coarse, values, said, tmp_path: Path) -> None:
    config = tmp_path / "vae" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=said):
        demand_vae(config, PRESETS["portrait-tiny"].vae)


def test_every_family_names_the_class_of_its_network() -> None:
    for family in VAES:
        assert family.family().network.__name__ == family.class_name
        assert vae_named(family.class_name) is family


def test_a_published_vae_keeps_its_fingerprint() -> None:
    """Caches are found by it."""
    assert VideoVae.load("assets/portrait-tiny/vae").fingerprint == "46461751bd2c5750"
