from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.autoencoder.patch_code import set_patch_code
from magicdistill.models.networks.autoencoder.patch_decoder import PatchDecoder
from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.backbones.hunyuan_video.network import concat_image_prior
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import KernelsConfig, PatchDecoderConfig, Recompute
from magicdistill.models.networks.critic import Judged
from magicdistill.models.networks.lora import checkpoint_blocks, lora_layers, lora_strength
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.state_dicts import public
from magicdistill.models.networks.transformer import build_transformer


def smooth_pixels(count: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 3, 4, 4) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(9, 32, 32), mode="trilinear")


@pytest.fixture(scope="module")
def vae() -> VideoVae:
    torch.manual_seed(0)
    autoencoder: Any = build_autoencoder(PRESETS["portrait-tiny"].vae)
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


@pytest.fixture
def plain_vae() -> VideoVae:
    """A random autoencoder with its own decoder, of the published layout."""
    torch.manual_seed(0)
    return VideoVae(build_autoencoder(PRESETS["portrait-tiny"].vae)).eval()


@torch.no_grad()
def test_a_published_vae_is_normalised_by_its_scaling_factor(plain_vae, tmp_path):
    plain_vae.autoencoder.save_pretrained(tmp_path)
    loaded = VideoVae.load(tmp_path)
    pixels = smooth_pixels(1)
    posterior = plain_vae.autoencoder.encode(pixels, return_dict=False)[0]
    latents = loaded.encode(pixels)
    torch.testing.assert_close(latents, 0.476986 * posterior.mode())
    decoded = plain_vae.autoencoder.decode(posterior.mode(), return_dict=False)[0]
    torch.testing.assert_close(loaded.decode(latents), decoded.clamp(-1, 1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_tiling_bounds_what_the_networks_see_and_keeps_the_geometry(plain_vae):
    pixels = smooth_pixels(1)
    latents = plain_vae.encode(pixels)
    plain_vae.enable_tiling(tile_px=32, overlap_px=8)
    torch.testing.assert_close(plain_vae.encode(pixels), latents)  # the clip fits a tile
    plain_vae.enable_tiling(tile_px=16, overlap_px=8)
    sides = {plain_vae.autoencoder.encoder: [], plain_vae.autoencoder.decoder: []}
    for half in sides:
        half.register_forward_pre_hook(
            lambda module, inputs: sides[module].extend(inputs[0].shape[-2:])
        )
    tiled = plain_vae.encode(pixels)
    assert tiled.shape == latents.shape
    assert plain_vae.decode(tiled).shape == pixels.shape
    assert [max(seen) for seen in sides.values()] == [16, 2]


def test_tiles_that_do_not_fit_latents_are_refused(plain_vae):
    with pytest.raises(ValueError, match="multiples of 8"):
        plain_vae.enable_tiling(tile_px=100)


@torch.no_grad()
def test_the_vae_of_hunyuan_video_1_5_tiles_and_normalises_by_its_own_configuration(tmp_path):
    torch.manual_seed(0)
    shapes = PRESETS["hunyuan15-tiny"].vae
    network = build_autoencoder(shapes)
    network.save_pretrained(tmp_path)
    vae = VideoVae.load(tmp_path)
    pixels = torch.rand(1, 3, 5, 64, 64) * 2 - 1
    latents = vae.encode(pixels)
    assert latents.shape == (1, 32, 2, 4, 4)
    posterior = network.encode(pixels, return_dict=False)[0].mode()
    torch.testing.assert_close(latents, 1.03682 * posterior)
    own = network.decode(posterior, return_dict=False)[0].clamp(-1, 1)
    torch.testing.assert_close(vae.decode(latents), own, atol=1e-5, rtol=0)
    both = torch.cat([pixels.flip(2), pixels])  # of which its attention takes one at a time
    torch.testing.assert_close(vae.encode(both)[1:], latents)
    torch.testing.assert_close(vae.decode(vae.encode(both))[1:], own, atol=1e-5, rtol=0)
    sides = []
    vae.autoencoder.encoder.register_forward_pre_hook(
        lambda module, inputs: sides.extend(inputs[0].shape[-2:])
    )
    vae.encode(torch.zeros(1, 3, 1, 288, 32))
    assert max(sides) == 256, "larger frames are tiled without being asked"
    sides.clear()
    vae.enable_tiling(tile_px=32, overlap_px=16)
    tiled = vae.encode(pixels)
    assert tiled.shape == latents.shape and vae.decode(tiled).shape == pixels.shape
    torch.testing.assert_close(tiled[..., 0, 0], vae.encode(pixels[..., :32, :32])[..., 0, 0])
    assert set(sides) == {32, 16}
    for tile, overlap, message in ((64, 0, "a quarter or a half"), (80, 16, "a quarter or a half")):
        with pytest.raises(ValueError, match=message):
            vae.enable_tiling(tile_px=tile, overlap_px=overlap)


def test_the_preset_of_hunyuan_video_1_5_has_the_published_shapes():
    preset = PRESETS["hunyuan15-i2v-8b"]
    with torch.device("meta"):
        network = build_transformer(preset.transformer)
        autoencoder = build_autoencoder(preset.vae)
        # The published shapes are the defaults of the classes.
        published = type(network)(), type(autoencoder)()
    assert public(network.config) == public(published[0].config)
    assert public(autoencoder.config) == public(published[1].config)
    assert sum(p.numel() for p in network.parameters()) == 8_326_608_160


def test_the_tiny_and_the_large_preset_are_one_class():
    with torch.device("meta"):
        tiny, large = (
            build_transformer(PRESETS[name].transformer)
            for name in ("portrait-tiny", "magic141-13b")
        )
    assert type(tiny) is type(large)
    assert tiny.config["in_channels"] == large.config["in_channels"] == 33
    assert sum(p.numel() for p in large.parameters()) == 12_810_991_680


@torch.no_grad()
def test_the_large_preset_takes_and_gives_the_papers_geometry():
    """129 frames of 544 x 960 are 33 x 68 x 120 x 16 latents, 67 320 tokens (002 section 4)."""
    preset = PRESETS["magic141-13b"]
    two_of_each = preset.transformer.model_copy(update={"num_layers": 2, "num_single_layers": 2})
    with torch.device("meta"):
        network, vae = (
            build_transformer(two_of_each),
            VideoVae(build_autoencoder(preset.vae)),
        )
        assert vae.encode(torch.empty(1, 3, 1, 544, 960)).shape == (1, 16, 1, 68, 120)
        assert vae.encode(torch.empty(1, 3, 129, 16, 16)).shape == (1, 16, 33, 2, 2)
        latents = torch.empty(1, 16, 33, 68, 120)
        tokens = network.x_embedder(concat_image_prior(latents, latents[:, :, :1]))
        assert tokens.shape == (1, 67_320, 3072)
        v = network(
            hidden_states=concat_image_prior(latents, latents[:, :, :1]),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 544, 4096),
            encoder_attention_mask=torch.ones(1, 544, dtype=torch.bool),
            pooled_projections=torch.empty(1, 768),
            return_dict=False,
        )[0]
    assert v.shape == latents.shape


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


def test_a_recomputed_block_uses_the_strength_of_its_forward(critic, batch):
    """The context is left before the backward, and entered again with another strength."""
    gradients = []
    for recompute in (False, True):
        if recompute:
            checkpoint_blocks(critic.score.transformer)
        critic.zero_grad()
        with lora_strength(critic, torch.tensor([0.25, 1.0])):
            v = critic(batch.x0, torch.tensor([0.3, 0.8]), batch.conditions, output="velocity")
        with lora_strength(critic, 0.0):
            v.square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in critic.named_parameters() if "lora" in n})
    torch.testing.assert_close(gradients[1], gradients[0])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())


def test_the_adversarial_gradient_is_the_same_when_blocks_are_recomputed(critic, batch):
    gradients = []
    for recompute in (False, True):
        if recompute:
            checkpoint_blocks(critic.score.transformer)
        x = batch.x0.clone().requires_grad_()
        logits = critic(x, torch.tensor([0.3, 0.8]), batch.conditions, output="logits")
        gradients.append(torch.autograd.grad(logits.sum(), x)[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_recomputed_discriminator_has_the_same_gradients(critic, batch):
    sigma, gradients = torch.tensor([0.3, 0.8]), []
    for recompute in get_args(Recompute):
        set_kernels(critic, KernelsConfig(recompute_blocks=recompute))
        calls = []
        handle = critic.discriminator.block.register_forward_pre_hook(
            lambda *_, c=calls: c.append(1)
        )
        critic.zero_grad()
        critic(batch.x0, sigma, batch.conditions, output="logits").square().mean().backward()
        handle.remove()
        assert len(calls) == 1 + (recompute != "none")
        gradients.append([p.grad.clone() for p in critic.discriminator.parameters()])
    for recomputed in gradients[1:]:
        assert all(map(torch.equal, recomputed, gradients[0]))


def test_a_score_and_logits_of_other_samples_are_those_of_two_forwards(critic, batch):
    sigma, moved = torch.tensor([0.3, 0.8]), batch.x0 + 1
    expected = (
        critic(batch.x0, sigma, batch.conditions, output="velocity"),
        critic(moved, sigma, batch.conditions, output="logits"),
    )
    judged = Judged(moved, sigma, batch.conditions)
    found = critic(batch.x0, sigma, batch.conditions, output="velocity", judged=judged)
    assert all(map(torch.equal, found, expected))
    assert all(tensor.requires_grad for tensor in found)


def test_a_frozen_critic_gives_gradients_to_what_is_judged_alone(critic, batch):
    sigma, x = torch.tensor([0.3, 0.8]), batch.x0.clone().requires_grad_()
    critic.requires_grad_(False)
    v, logits = critic(
        x.detach(), sigma, batch.conditions, output="velocity",
        judged=Judged(x, sigma, batch.conditions),
    )  # fmt: skip
    assert not v.requires_grad
    assert torch.autograd.grad(logits.sum(), x)[0].abs().max() > 0


@torch.no_grad()
def test_one_doubled_forward_equals_two_in_bfloat16(critic, batch):
    test_one_doubled_forward_equals_two(critic.to(torch.bfloat16), batch)


def test_conditions_with_and_without_image_tokens_do_not_mix(batch):
    with_tokens = replace(batch.conditions, image_tokens=torch.zeros(2, 3, 6))
    joined = Conditions.cat([with_tokens, with_tokens]).image_tokens
    assert joined is not None and joined.shape == (4, 3, 6)
    with pytest.raises(ValueError, match="image tokens"):
        Conditions.cat([with_tokens, batch.conditions])


def test_the_discriminator_starts_from_the_backbone_and_shares_nothing(critic):
    block = critic.discriminator.block
    backbone = critic.score.transformer.single_transformer_blocks[0]
    base = {n.replace(".base_layer", ""): p for n, p in backbone.named_parameters()}
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter, base[name])
        assert parameter.data_ptr() != base[name].data_ptr()
        assert parameter.requires_grad
