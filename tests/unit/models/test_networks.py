import pytest
import torch

from magicdistill.models.networks.config import PRESETS, PatchDecoderConfig
from magicdistill.models.networks.lora import lora_layers, lora_strength
from magicdistill.models.networks.patch_code import set_patch_code
from magicdistill.models.networks.patch_decoder import PatchDecoder
from magicdistill.models.networks.transformer import build_transformer, concat_image_prior
from magicdistill.models.networks.vae import VideoVae, build_autoencoder


def smooth_pixels(count: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 3, 4, 4) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(9, 32, 32), mode="trilinear")


@pytest.fixture(scope="module")
def vae() -> VideoVae:
    torch.manual_seed(0)
    autoencoder = build_autoencoder(PRESETS["portrait-tiny"].vae)
    pixels = smooth_pixels(12)
    set_patch_code(autoencoder, pixels)
    decoder = PatchDecoder(PatchDecoderConfig(width=16, num_blocks=1))
    with torch.no_grad():
        decoder.set_linear_inverse(VideoVae(autoencoder).encode(pixels), pixels)
    return VideoVae(autoencoder, patch_decoder=decoder).eval()


@torch.no_grad()
def test_the_patch_code_is_white_and_its_inverse_restores_smooth_video(vae):
    pixels = smooth_pixels(6)
    latents = vae.encode(pixels)
    assert latents.shape == (6, 16, 3, 4, 4)
    assert latents.std() == pytest.approx(1, abs=0.3)
    error = (vae.decode(latents) - pixels).square().mean()
    assert error < 0.1 * pixels.var()


@torch.no_grad()
def test_the_patch_code_sees_frame_zero_alone(vae):
    """The first latent is the image prior of image-to-video: it must not know the future."""
    pixels = smooth_pixels(2)
    alone = vae.encode(pixels[:, :, :1])
    torch.testing.assert_close(vae.encode(pixels)[:, :, :1], alone, atol=2e-2, rtol=0)


def test_a_vae_comes_back_from_disk_with_its_fingerprint(vae, tmp_path):
    vae.save(tmp_path / "a")
    loaded = VideoVae.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    assert VideoVae.load(tmp_path / "b").fingerprint == loaded.fingerprint
    latents = torch.randn(1, 16, 2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(loaded.decode(latents), vae.decode(latents), atol=2e-2, rtol=0)


def test_a_clip_of_wrong_length_is_refused(vae):
    with pytest.raises(ValueError, match=r"4k\+1 frames"):
        vae.encode(torch.zeros(1, 3, 8, 32, 32))


def test_the_tiny_and_the_large_preset_are_one_class():
    with torch.device("meta"):
        tiny, large = (
            build_transformer(PRESETS[name].transformer)
            for name in ("portrait-tiny", "magic141-13b")
        )
    assert type(tiny) is type(large)
    assert tiny.config["in_channels"] == large.config["in_channels"] == 33
    assert sum(p.numel() for p in large.parameters()) == pytest.approx(12.8e9, rel=0.01)


def test_the_image_prior_stands_at_latent_frame_zero():
    x, prior = torch.randn(1, 4, 3, 2, 2), torch.randn(1, 4, 1, 2, 2)
    joined = concat_image_prior(x, prior)
    assert torch.equal(joined[:, :4], x) and torch.equal(joined[:, 4:8, :1], prior)
    assert joined[:, 4:8, 1:].abs().sum() == 0
    assert joined[:, 8].flatten(2).mean(2).tolist() == [[1, 0, 0]]


@torch.no_grad()
def test_one_doubled_forward_equals_two(critic, batch):
    sigma = torch.tensor([0.3, 0.8])
    weak, strong = (
        _at_strength(critic, strength, batch.x0, sigma, batch.conditions)
        for strength in (0.25, 1.0)
    )
    doubled = torch.tensor([0.25, 0.25, 1.0, 1.0])
    both = _at_strength(
        critic, doubled, batch.x0.repeat(2, 1, 1, 1, 1), sigma.repeat(2),
        batch.conditions.cat([batch.conditions] * 2),
    )  # fmt: skip
    torch.testing.assert_close(both, torch.cat([weak, strong]), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(weak, strong)


def _at_strength(critic, strength, x, sigma, conditions):
    with lora_strength(critic, strength):
        return critic(x, sigma, conditions, output="velocity")


@torch.no_grad()
def test_strength_zero_is_the_frozen_base_and_is_restored(critic, generator, batch):
    sigma = torch.tensor([0.3, 0.8])
    v = _at_strength(critic, 0.0, batch.x0, sigma, batch.conditions)
    expected = generator(batch.x0, sigma, batch.conditions)
    torch.testing.assert_close(v, expected, atol=1e-6, rtol=1e-5)
    assert {layer.scaling["default"] for layer in lora_layers(critic)} == {1.0}


def test_the_discriminator_starts_from_the_backbone_and_shares_nothing(critic):
    block = critic.discriminator.block
    backbone = critic.score.transformer.single_transformer_blocks[0]
    base = {n.replace(".base_layer", ""): p for n, p in backbone.named_parameters()}
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter, base[name])
        assert parameter.data_ptr() != base[name].data_ptr()
        assert parameter.requires_grad
