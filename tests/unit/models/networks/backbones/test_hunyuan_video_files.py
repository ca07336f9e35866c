"""Published files of HunyuanVideo: their names, and their layouts of the input."""

import re

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers
from torch import Tensor

from magicdistill.models.networks.backbones.hunyuan_video import files
from magicdistill.models.networks.backbones.hunyuan_video.files import in_diffusers_names
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import (
    VelocityModel,
    load_transformer,
)
from tests.networks import assert_same, network, weights
from tests.tiny import tiny_shapes

SHAPES = tiny_shapes()


TEXT_TO_VIDEO = {"in_channels": 4, "image_condition_type": None, "guidance_embeds": True}


IMAGE_TO_VIDEO = {"in_channels": 4, "image_condition_type": "token_replace"}


ORIGINAL_NAMES = (
    (r"context_embedder\.time_text_embed\.timestep_embedder\.linear_1", "txt_in.t_embedder.mlp.0"),
    (r"context_embedder\.time_text_embed\.timestep_embedder\.linear_2", "txt_in.t_embedder.mlp.2"),
    (r"context_embedder\.time_text_embed\.text_embedder", "txt_in.c_embedder"),
    (r"context_embedder\.proj_in", "txt_in.input_embedder"),
    (r"context_embedder\.token_refiner\.refiner_blocks", "txt_in.individual_token_refiner.blocks"),
    (r"(txt_in.*)attn\.to_[qkv]", r"\1self_attn_qkv"),
    (r"(txt_in.*)attn\.to_out\.0", r"\1self_attn_proj"),
    (r"(txt_in.*)ff\.net", r"\1mlp.net"),
    (r"(txt_in.*)norm_out\.linear", r"\1adaLN_modulation.1"),
    (r"time_text_embed\.timestep_embedder\.linear_1", "time_in.mlp.0"),
    (r"time_text_embed\.timestep_embedder\.linear_2", "time_in.mlp.2"),
    (r"time_text_embed\.guidance_embedder\.linear_1", "guidance_in.mlp.0"),
    (r"time_text_embed\.guidance_embedder\.linear_2", "guidance_in.mlp.2"),
    (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^single_transformer_blocks", "single_blocks"),
    (r"(single.*)(attn\.to_[qkv]|proj_mlp)", r"\1linear1"),
    (r"(single.*)proj_out", r"\1linear2"),
    (r"(single.*)attn\.norm_([qk])", r"\1\2_norm"),
    (r"(single.*)norm\.linear", r"\1modulation.linear"),
    (r"^transformer_blocks", "double_blocks"),
    (r"(double.*)attn\.to_[qkv]", r"\1img_attn_qkv"),
    (r"(double.*)attn\.add_[qkv]_proj", r"\1txt_attn_qkv"),
    (r"(double.*)attn\.to_out\.0", r"\1img_attn_proj"),
    (r"(double.*)attn\.to_add_out", r"\1txt_attn_proj"),
    (r"(double.*)attn\.norm_added_([qk])", r"\1txt_attn_\2_norm"),
    (r"(double.*)attn\.norm_([qk])", r"\1img_attn_\2_norm"),
    (r"(double.*)norm1_context", r"\1txt_mod"),
    (r"(double.*)norm1", r"\1img_mod"),
    (r"(double.*)ff_context", r"\1txt_mlp"),
    (r"(double.*)ff\.net", r"\1img_mlp.net"),
    (r"net\.0\.proj", "fc1"),
    (r"net\.2", "fc2"),
    (r"^x_embedder", "img_in"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
)


def in_original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo diffusers' conversion, from the names of the public HunyuanVideo code."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in sorted(state.items(), key=lambda item: place_in_fused(item[0])):
        for pattern, replacement in ORIGINAL_NAMES:
            name = re.sub(pattern, replacement, name)
        parts.setdefault(name, []).append(tensor)
    original = {name: torch.cat(tensors) for name, tensors in parts.items()}
    for name in ("final_layer.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.bias"):
        scale, shift = original[name].chunk(2)
        original[name] = torch.cat([shift, scale])
    return original


def place_in_fused(name: str) -> int:
    places = (place for place, part in enumerate(("_q", "_k", "_v")) if part in name)
    return next(places, 3)


def inputs() -> tuple[Tensor, Tensor, Conditions]:
    torch.manual_seed(1)
    x, prior = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 4, 1, 4, 4)
    mask = torch.ones(2, 2, dtype=torch.bool)
    conditions = Conditions(torch.randn(2, 2, 6), mask, torch.randn(2, 6), prior)
    return x, torch.tensor([0.3, 0.9]), conditions


def as_published(transformer, x, sigma, conditions) -> Tensor:
    """Call diffusers' network as its own pipelines do, at guidance 1."""
    return transformer(
        hidden_states=x,
        timestep=1000 * sigma,
        encoder_hidden_states=conditions.text,
        encoder_attention_mask=conditions.text_mask,
        pooled_projections=conditions.pooled,
        guidance=torch.full_like(sigma, 1000.0),
        return_dict=False,
    )[0]


LAYOUTS = {
    "text-to-video": {"in_channels": 4, "image_condition_type": None},
    "text-to-video, guidance embedded": TEXT_TO_VIDEO,
    "latent_concat": {"in_channels": 9, "image_condition_type": "latent_concat"},
    "token_replace": IMAGE_TO_VIDEO,
    "token_replace, guidance embedded": IMAGE_TO_VIDEO | {"guidance_embeds": True},
    "skyreels": {"in_channels": 8, "image_condition_type": None},
}
"""The published networks: what of their configuration differs, for latents of 4 channels."""
NOT_TOLD = {"text-to-video": "text_to_video", "token_replace": "token_replace"}
"""What has to be said of a file that has no configuration."""


def published_input(layout: str, x: Tensor, prior: Tensor) -> Tensor:
    """Return what diffusers' pipeline of a layout gives its network."""
    first = torch.cat([prior, torch.zeros_like(x[:, :, 1:])], dim=2)
    mask = torch.zeros_like(x[:, :1])
    mask[:, :, 0] = 1
    return {
        "text-to-video": x,
        "latent_concat": torch.cat([x, first, mask], dim=1),
        "token_replace": torch.cat([prior, x[:, :, 1:]], dim=2),
        "skyreels": torch.cat([x, first], dim=1),
    }[layout]


@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_every_published_layout_is_what_its_own_pipeline_computes(name, is_folder, tmp_path):
    layout = name.split(",")[0]
    source = network(**LAYOUTS[name])
    if is_folder:
        source.save_pretrained(tmp_path)
        loaded = load_transformer(tmp_path, SHAPES)
    else:
        file = tmp_path / "model.pt"
        torch.save({"module": weights(source)}, file)
        loaded = load_transformer(file, SHAPES, layout=NOT_TOLD.get(layout))
    x, sigma, conditions = inputs()
    assert conditions.image_prior is not None
    given = published_input(layout, x, conditions.image_prior)
    expected = as_published(source, given, sigma, conditions)
    v = VelocityModel(loaded)(x, sigma, conditions)
    own = slice(1, None) if layout == "token_replace" else slice(None)
    torch.testing.assert_close(v[:, :, own], expected[:, :, own], atol=1e-5, rtol=1e-5)
    if layout == "token_replace":
        first = x[:, :, :1] - sigma.view(-1, 1, 1, 1, 1) * v[:, :, :1]
        torch.testing.assert_close(first, conditions.image_prior, atol=1e-5, rtol=1e-5)
    if layout == "text-to-video":
        assert loaded.config["in_channels"] == 9
    else:
        assert_same(loaded, source)


@pytest.mark.parametrize(
    ("channels", "layout", "message"),
    [
        (4, None, "say model.teacher_layout text_to_video or token_replace"),
        (4, "skyreels", "4 input channels are those of text_to_video or token_replace, not of sky"),
        (9, "token_replace", "9 input channels are those of latent_concat, not of token_replace"),
        (5, None, r"5 input channels are of no layout of HunyuanVideo: 4 \(text_to_video\)"),
    ],
)
def test_what_a_file_does_not_tell_is_asked_and_never_guessed(channels, layout, message, tmp_path):
    file = tmp_path / "model.pt"
    source = network(in_channels=channels, image_condition_type=None)
    torch.save(weights(source), file)
    with pytest.raises(ValueError, match=rf"model\.pt: .*{message}"):
        load_transformer(file, SHAPES, layout=layout)


def test_a_folder_says_itself_what_its_layout_is(tmp_path):
    network(**IMAGE_TO_VIDEO).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json says token_replace: leave model"):
        load_transformer(tmp_path, SHAPES, layout="text_to_video")
    network(in_channels=6, image_condition_type=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="6 input channels are of no layout of HunyuanVideo"):
        load_transformer(tmp_path, SHAPES)


def test_the_original_file_loads_through_the_converter(tmp_path):
    # Single-stream blocks are left out: the converter knows only the width of the 13B model.
    shapes = SHAPES.model_copy(update={"num_single_layers": 0})
    source = network(**TEXT_TO_VIDEO, num_single_layers=0)
    original = in_original_names(weights(source))
    assert {"img_in.proj.weight", "double_blocks.0.txt_attn_qkv.bias"} <= original.keys()
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": original}, file)
    loaded = load_transformer(file, shapes, layout="text_to_video")
    patches = loaded.x_embedder.proj.weight
    assert patches[:, 4:].abs().max() == 0
    expected = weights(source)
    expected["x_embedder.proj.weight"] = torch.cat(
        [expected["x_embedder.proj.weight"], torch.zeros_like(patches[:, 4:])], dim=1
    )
    torch.testing.assert_close(weights(loaded), expected, rtol=0, atol=0)


def test_every_key_of_the_original_13b_file_finds_its_place():
    config = PRESETS["magic141-13b"].transformer.arguments()
    with torch.device("meta"):
        large = HunyuanVideoTransformer3DModel(
            **config | {"in_channels": 16, "image_condition_type": None, "guidance_embeds": True}
        )
    converted = in_diffusers_names(in_original_names(weights(large)))
    shapes = {name: tensor.shape for name, tensor in converted.items()}
    assert shapes == {name: tensor.shape for name, tensor in large.state_dict().items()}


def test_the_fused_projection_of_the_original_13b_file_is_split_in_its_order():
    fused = torch.arange(7.0 * 3072)
    part = {"img_in.proj.weight": torch.zeros(1), "single_blocks.3.linear1.bias": fused}
    block = in_diffusers_names(part)
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    split = [block[f"single_transformer_blocks.3.{name}.bias"] for name in parts]
    assert [len(part) for part in split] == [3072, 3072, 3072, 4 * 3072]
    assert torch.equal(torch.cat(split), fused)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_lora_student_or_a_full_one_gets_the_names_of_the_original_file(name):
    state = weights(network(**LAYOUTS[name]))
    expected, found = in_original_names(state), files.NAMES.to_original(state)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_diffusers_reads_a_lora_student_of_13b_back_from_the_original_names():
    """Each linear has the change that it had, at the width that diffusers' converter knows."""
    config = PRESETS["magic141-13b"].transformer
    with torch.device("meta"):
        shallow = config.shallow()
        large = HunyuanVideoTransformer3DModel(**shallow.arguments())
    linears = {n: part for n, part in large.named_modules() if isinstance(part, torch.nn.Linear)}
    targets = re.compile("|".join(config.lora_targets))
    state: dict[str, Tensor] = {}
    for name, linear in linears.items():
        if targets.fullmatch(name):
            state[f"{name}.lora_A.weight"] = torch.randn(2, linear.in_features)
            state[f"{name}.lora_B.weight"] = torch.randn(linear.out_features, 2)
    del state["transformer_blocks.0.attn.to_k.lora_A.weight"]  # a recipe may leave a part out
    del state["transformer_blocks.0.attn.to_k.lora_B.weight"]
    widths = {name: linear.out_features for name, linear in linears.items()}
    original = files.NAMES.lora_to_original(state, widths)
    assert original["single_blocks.0.linear1.lora_B.weight"].shape == (7 * 3072, 8)
    assert original["double_blocks.0.img_attn_qkv.lora_A.weight"].shape == (4, 3072)
    found = _convert_hunyuan_video_lora_to_diffusers(original)
    probe = torch.randn(5 * 3072)
    for name in linears:
        if not targets.fullmatch(name):
            continue
        down, up = (found[f"transformer.{name}.lora_{part}.weight"] for part in "AB")
        x = probe[: down.shape[1]]
        expected = torch.zeros(len(up))
        if f"{name}.lora_A.weight" in state:
            expected = state[f"{name}.lora_B.weight"] @ (state[f"{name}.lora_A.weight"] @ x)
        torch.testing.assert_close(up @ (down @ x), expected, atol=1e-4, rtol=1e-4)
