"""Wan's network computes what diffusers' does, from the same inputs as its pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from safetensors.torch import save_file
from torch import Tensor

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.autoencoder.vae import VideoVae, build_autoencoder
from magicdistill.models.networks.autoencoder.wan import WanVaeConfig
from magicdistill.models.networks.backbones.wan.network import (
    CrossAttention,
    SelfAttention,
    Wan,
    concat_image_prior,
)
from magicdistill.models.networks.backbones.wan.shapes import WanConfig
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import AttentionKernel, KernelsConfig
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    load_transformer,
)
from magicdistill.models.networks.weights import save_transformer
from tests.tiny import tiny_wan, tiny_wan_inputs

KERNELS: list[AttentionKernel] = ["sdpa", "flash"]
WITH_IMAGES = tiny_wan(image_dim=6)
ORIGINAL_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    "to_out.0": "o",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "proj_out": "head.head",
}
"""Names in diffusers and in the published code of Wan."""


def network(shapes: WanConfig):
    torch.manual_seed(0)
    return build_transformer(shapes)


def output_and_gradients(model: torch.nn.Module, output: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    weighed = (output * torch.randn_like(output)).sum()
    return [output, *torch.autograd.grad(weighed, list(model.parameters()))]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shapes", [tiny_wan(), WITH_IMAGES], ids=["wan2.2", "wan2.1"])
def test_the_velocity_and_its_gradients_equal_those_of_diffusers(shapes, kernel) -> None:
    own, theirs = VelocityModel(network(shapes)), network(shapes)
    set_kernels(own, KernelsConfig(attention=kernel))
    attentions = [own.transformer.blocks[0].attn1.processor, theirs.blocks[0].attn1.processor]
    assert [isinstance(attention, SelfAttention) for attention in attentions] == [True, False]
    assert isinstance(own.transformer.blocks[1].attn2.processor, CrossAttention)
    x, sigma, conditions = tiny_wan_inputs()
    image = torch.randn(2, 5, 6) if shapes.image_dim else None
    text = torch.zeros(2, 512, 6)
    for row, length in enumerate(conditions.text_lengths):
        text[row, :length] = conditions.text[row, :length]
    prior, mask = torch.zeros_like(x), torch.zeros(2, 4, *x.shape[2:])
    assert conditions.image_prior is not None
    prior[:, :, :1], mask[:, :, 0] = conditions.image_prior, 1
    expected = theirs(
        torch.cat([x, mask, prior], dim=1), 1000 * sigma, text, image, return_dict=False
    )[0]
    given = Conditions(
        conditions.text, conditions.text_mask, conditions.pooled, conditions.image_prior, image
    )
    found = own(x, sigma, given)
    torch.testing.assert_close(
        output_and_gradients(own.transformer, found),
        output_and_gradients(theirs, expected),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("shapes", [tiny_wan(), WITH_IMAGES], ids=["wan2.2", "wan2.1"])
def test_the_features_are_what_the_block_after_the_first_half_gets(shapes) -> None:
    model = VelocityModel(network(shapes))
    seen: list[Tensor] = []
    backbone = model.backbone
    backbone.discriminator_block.register_forward_pre_hook(
        lambda block, inputs: seen.extend(inputs[:3])
    )
    x, sigma, conditions = tiny_wan_inputs()
    model(x, sigma, conditions)
    assert model.transformer.blocks[1] is backbone.discriminator_block
    torch.testing.assert_close(list(backbone.features(x, sigma, conditions, None)[:3]), seen)


@torch.no_grad()
def test_rotary_phases_stay_exact_where_the_weights_are_bfloat16() -> None:
    model = VelocityModel(network(tiny_wan()))
    x, sigma, conditions = tiny_wan_inputs()
    exact: Any = model.backbone.features(x, sigma, conditions, None)
    features: Any = model.to(torch.bfloat16).backbone.features(x, sigma, conditions, None)
    assert features.video.dtype == torch.bfloat16
    torch.testing.assert_close(features.rotary, exact.rotary, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_recomputed_blocks_of_wan_give_the_same_gradients(kernel) -> None:
    found = []
    for recompute in ("none", "selective", "full"):
        model = VelocityModel(network(tiny_wan()))
        set_kernels(model, KernelsConfig(attention=kernel, recompute_blocks=recompute))
        found.append(output_and_gradients(model.transformer, model(*tiny_wan_inputs())))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@torch.no_grad()
def test_the_image_enters_as_in_diffusers_pipeline() -> None:
    """A first frame and gray frames, encoded, behind a mask of four channels."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder(WanVaeConfig(base_dim=4, num_res_blocks=1)).eval()
    stock: Any = WanImageToVideoPipeline  # whose types are of its own classes
    pipeline = stock(
        tokenizer=None,
        text_encoder=None,
        vae=autoencoder,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=network(tiny_wan()),
    )
    image, noise = torch.rand(1, 3, 32, 48) * 2 - 1, torch.randn(1, 16, 3, 4, 6)
    latents, condition = pipeline.prepare_latents(
        image, 1, height=32, width=48, num_frames=9, dtype=torch.float32, latents=noise
    )
    vae = VideoVae(autoencoder, *VideoVae.statistics_of(autoencoder))
    first = image[:, :, None]
    prior = vae.image_prior(first, vae.encode(first), 9)
    assert prior.shape == noise.shape
    torch.testing.assert_close(
        concat_image_prior(noise, prior),
        torch.cat([latents, condition], dim=1),
        atol=1e-5,
        rtol=1e-5,
    )
    assert prior[:, :, 1].std() > 0, "what is after the first latent frame depends on the image"


def in_original_names(network) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in network.state_dict().items():
        original = name
        for ours, theirs in ORIGINAL_NAMES.items():
            original = original.replace(ours, theirs)
        if original.endswith("scale_shift_table"):
            head = "" if original.startswith("blocks") else "head."
            original = head + original.replace("scale_shift_table", "modulation")
        renamed[original] = tensor
    return renamed


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("shapes", [tiny_wan(), WITH_IMAGES], ids=["wan2.2", "wan2.1"])
def test_a_file_of_the_original_code_is_loaded(shapes, prefix, tmp_path: Path) -> None:
    written = network(shapes)
    tensors = in_original_names(written)
    assert {"head.modulation", "blocks.0.cross_attn.o.weight"} <= tensors.keys()
    assert not tensors.keys() & {"proj_out.weight", "blocks.0.norm2.weight"}
    path = tmp_path / "wan.safetensors"
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    loaded = load_transformer(path, WITH_IMAGES)  # the file tells whether it takes images
    assert loaded.config["image_dim"] == shapes.image_dim
    inputs = tiny_wan_inputs()
    assert torch.equal(VelocityModel(loaded)(*inputs), VelocityModel(written)(*inputs))


def test_a_wan_that_takes_no_first_frame_is_refused(tmp_path: Path) -> None:
    shapes = tiny_wan()
    plain = Wan.network(**shapes.arguments() | {"in_channels": 4})
    save_transformer(plain, tmp_path / "folder")
    save_file(plain.state_dict(), tmp_path / "file.safetensors")
    for place in ("folder", "file.safetensors"):
        with pytest.raises(ValueError, match="4 input channels: the image-to-video networks of"):
            load_transformer(tmp_path / place, shapes)


@pytest.mark.parametrize(
    ("name", "count"), [("wan21-i2v-14b", 16_394_878_784), ("wan22-i2v-14b", 14_288_901_184)]
)
def test_the_14b_presets_have_the_published_numbers_of_parameters(name: str, count: int) -> None:
    """The published 14B with CLIP's branch, whose files of float32 have 65.6 GB, and without it."""
    with torch.device("meta"):
        transformer = build_transformer(PRESETS[name].transformer)
        vae = build_autoencoder(PRESETS[name].vae)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == count
    assert sum(parameter.numel() for parameter in vae.parameters()) == 126_892_531
