"""A preset of one's own: registered, chosen by a recipe's model, built."""

from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from magicdistill.models.networks.autoencoder.vae import build_autoencoder
from magicdistill.models.networks.presets import PRESETS, ModelConfig, NetworkPreset
from magicdistill.models.networks.transformer import build_transformer
from tests.registries import registries_restored
from tests.tiny import tiny_shapes


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with registries_restored():
        yield


def preset() -> NetworkPreset:
    return PRESETS["nano"].model_copy(update={"transformer": tiny_shapes(latent_channels=16)})


def test_a_model_chooses_it_by_name_and_it_is_built() -> None:
    PRESETS.register("mine", preset())
    shapes = ModelConfig(preset="mine").shapes
    transformer = build_transformer(shapes.transformer)
    assert len(transformer.transformer_blocks) == 1
    assert transformer.config["in_channels"] == 33
    assert build_autoencoder(shapes.vae).config["latent_channels"] == 16


def test_an_unknown_one_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValidationError, match="no such preset; there are portrait-tiny, nano"):
        ModelConfig(preset="mine")


def test_a_name_means_one_preset() -> None:
    PRESETS.register("mine", preset())
    PRESETS.register("mine", preset())
    with pytest.raises(ValueError, match="preset nano has other shapes already"):
        PRESETS.register("nano", preset())
