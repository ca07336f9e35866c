import json
import re

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from magicdistill.models.locations import find_weights
from magicdistill.models.networks.backbones.hunyuan_video_files import in_diffusers_names
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.presets import PRESETS
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    copy_transformer,
    load_transformer,
)
from magicdistill.models.networks.weights import save_transformer
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


def network(seed: int = 0, **changes) -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(seed)
    return HunyuanVideoTransformer3DModel(**SHAPES.arguments() | changes).eval()


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


def assert_same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    torch.testing.assert_close(weights(found), weights(expected), rtol=0, atol=0)


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


def test_a_saved_folder_comes_back_whole_or_sharded(tmp_path):
    transformer = network()
    for folder, max_bytes in (("whole", 2**30), ("sharded", 2**15)):
        save_transformer(transformer, tmp_path / folder, torch.float32, max_file_bytes=max_bytes)
        assert_same(load_transformer(tmp_path / folder), transformer)
    assert len(list((tmp_path / "sharded").glob("*-of-*.safetensors"))) > 2
    published = HunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "sharded")
    assert_same(published, transformer)


def test_a_smaller_save_leaves_no_old_shards(tmp_path):
    save_transformer(network(), tmp_path, torch.float32, max_file_bytes=2**15)
    save_transformer(network(1), tmp_path, torch.float32)
    assert_same(load_transformer(tmp_path), network(1))
    assert len(list(tmp_path.glob("*.safetensors*"))) == 1


def test_a_sharded_folder_of_diffusers_loads(tmp_path):
    transformer = network()
    transformer.save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert_same(load_transformer(tmp_path), transformer)


@torch.no_grad()
def test_a_fresh_image_to_video_model_equals_the_text_to_video_one(tmp_path):
    source = network(**TEXT_TO_VIDEO)
    source.save_pretrained(tmp_path)
    loaded = load_transformer(tmp_path)
    assert loaded.config["in_channels"] == 9
    x, sigma, conditions = inputs()
    expected = as_published(source, x, sigma, conditions)
    found = VelocityModel(loaded)(x, sigma, conditions)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_network_that_replaces_the_first_frame_keeps_its_layout(tmp_path):
    source = network(**IMAGE_TO_VIDEO)
    source.save_pretrained(tmp_path)
    loaded = load_transformer(tmp_path)
    assert_same(loaded, source)
    x, sigma, conditions = inputs()
    assert conditions.image_prior is not None
    v = VelocityModel(loaded)(x, sigma, conditions)
    replaced = torch.cat([conditions.image_prior, x[:, :, 1:]], dim=2)
    expected = as_published(source, replaced, sigma, conditions)[:, :, 1:]
    torch.testing.assert_close(v[:, :, 1:], expected, atol=1e-5, rtol=1e-5)
    first = x[:, :, :1] - sigma.view(-1, 1, 1, 1, 1) * v[:, :, :1]
    torch.testing.assert_close(first, conditions.image_prior, atol=1e-5, rtol=1e-5)


def test_the_original_file_loads_through_the_converter(tmp_path):
    # Single-stream blocks are left out: the converter knows only the width of the 13B model.
    shapes = SHAPES.model_copy(update={"num_single_layers": 0})
    source = network(**TEXT_TO_VIDEO, num_single_layers=0)
    original = in_original_names(weights(source))
    assert {"img_in.proj.weight", "double_blocks.0.txt_attn_qkv.bias"} <= original.keys()
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": original}, file)
    loaded = load_transformer(file, shapes)
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


def test_a_file_without_shapes_is_refused(tmp_path):
    torch.save(weights(network()), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="shapes"):
        load_transformer(tmp_path / "weights.pt")


def test_all_keys_that_do_not_fit_are_listed(tmp_path):
    save_transformer(network(), tmp_path, torch.float32)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    state = weights(network())
    state["proj_out.extra"] = state.pop("proj_out.bias")
    state["norm_out.linear.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="3 keys") as error:
        load_transformer(tmp_path)
    for line in (
        "unknown proj_out.extra",
        "missing proj_out.bias",
        "norm_out.linear.bias has (3,), the network (48,)",
    ):
        assert line in str(error.value)


def test_missing_shards_are_named(tmp_path):
    save_transformer(network(), tmp_path, torch.float32, max_file_bytes=2**15)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    for name in (first, last):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{first}, {last}"):
        load_transformer(tmp_path)


def test_a_copy_has_the_weights_and_shares_none():
    transformer = build_transformer(SHAPES).requires_grad_(False)
    copied = copy_transformer(transformer)
    assert_same(copied, transformer)
    pointers = {p.data_ptr() for p in transformer.parameters()}
    assert not any(p.data_ptr() in pointers or not p.requires_grad for p in copied.parameters())


def test_weights_are_found_in_a_pipeline_folder_and_as_a_file(tmp_path):
    save_transformer(network(), tmp_path / "transformer")
    found = find_weights(str(tmp_path), "model.teacher")
    assert found == tmp_path / "transformer"
    file = found / "diffusion_pytorch_model.safetensors"
    assert find_weights(str(file), "model.teacher") == file
    with pytest.raises(FileNotFoundError, match=r"model\.vae"):
        find_weights(str(tmp_path), "model.vae")
