"""HunyuanVideo-1.5 computes what diffusers' own forward does, for conditions of every kind."""

import re
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15Transformer3DModel
from torch import Tensor

from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.backbones.hunyuan_video15.files import NAMES
from magicdistill.models.networks.backbones.hunyuan_video15.network import (
    HunyuanVideo15,
    lengths_of,
)
from magicdistill.models.networks.backbones.joint_attention import JointAttention
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import KernelsConfig, LoraConfig
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.transformer import (
    VelocityModel,
    build_transformer,
    load_transformer,
)
from tests.networks import assert_same, weights
from tests.tiny15 import tiny15_conditions, tiny15_shapes

SHAPES = tiny15_shapes()
CASES: dict[str, tuple] = {
    "prompts alone": ((5, 5),),
    "padded alike": ((2, 2),),
    "different lengths": ((1, 4, 2),),
    "with image tokens": ((3, 5), (), 3),
    "with quoted words": ((3, 3), (2, 2)),
    "some without quoted words": ((5, 2, 3), (0, 4, 1)),
    "none with quoted words": ((5, 5), (0, 0), 3),
    "all of different lengths": ((1, 5), (3, 2), 3),
    "as many tokens of different kinds": ((2, 3), (3, 2), 1),
}
"""Valid tokens of prompts and of quoted words, and the number of image tokens."""


def published(seed: int = 0, **changes: Any) -> HunyuanVideo15Transformer3DModel:
    """Return diffusers' network with random weights, some of its arguments changed."""
    torch.manual_seed(seed)
    arguments: dict[str, Any] = SHAPES.arguments() | changes
    return HunyuanVideo15Transformer3DModel(**arguments).eval()


def inputs_of(case: str) -> tuple[Tensor, Tensor, Conditions]:
    torch.manual_seed(1)
    conditions = tiny15_conditions(*CASES[case])
    batch = len(conditions)
    return torch.randn(batch, 4, 3, 2, 4, requires_grad=True), torch.rand(batch), conditions


def as_published(
    network: HunyuanVideo15Transformer3DModel, x: Tensor, sigma: Tensor, conditions: Conditions
) -> Tensor:
    """Call diffusers' network as its own pipeline does, where absent conditions are zeros."""
    batch = len(x)
    prior = torch.zeros_like(x)
    assert conditions.image_prior is not None
    prior[:, :, :1] = conditions.image_prior
    mask = torch.zeros_like(x[:, :1])
    mask[:, :, 0] = 1
    glyphs, glyph_mask = conditions.glyphs, conditions.glyph_mask
    if glyphs is None or glyph_mask is None:
        glyphs, glyph_mask = torch.zeros(batch, 4, 5), torch.zeros(batch, 4)
    image = conditions.image_tokens
    return network(
        hidden_states=torch.cat([x, prior, mask], dim=1),
        timestep=1000 * sigma,
        encoder_hidden_states=conditions.text,
        encoder_attention_mask=conditions.text_mask,
        encoder_hidden_states_2=glyphs,
        encoder_attention_mask_2=glyph_mask,
        image_embeds=torch.zeros(batch, 3, 7) if image is None else image,
        return_dict=False,
    )[0]


def output_and_gradients(network: torch.nn.Module, x: Tensor, output: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    leaves = [x, *network.parameters()]
    scalar = (output * torch.randn_like(output)).sum()
    return [
        output,
        *torch.autograd.grad(scalar, leaves, allow_unused=True, materialize_grads=True),
    ]


@pytest.mark.parametrize("kernel", ["sdpa", "flash"])
@pytest.mark.parametrize("case", CASES)
def test_the_backbone_equals_diffusers_own_forward(case, kernel):
    inputs = inputs_of(case)
    reference, network = published(), VelocityModel(published())
    set_kernels(network, KernelsConfig(attention=kernel))
    expected = output_and_gradients(reference, inputs[0], as_published(reference, *inputs))
    found = output_and_gradients(network, inputs[0], network(*inputs))
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:], expected[1:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("case", "lengths"),
    [
        ("padded alike", None),
        ("with image tokens", (6, 8)),
        ("none with quoted words", None),
        ("some without quoted words", (5, 6, 4)),
        ("as many tokens of different kinds", None),
    ],
)
def test_only_conditions_of_different_lengths_need_a_mask(case, lengths):
    x, sigma, conditions = inputs_of(case)
    features: Any = VelocityModel(published()).backbone.features(x, sigma, conditions, None)
    assert (features.mask and features.mask.lengths) == lengths
    num_valid = max(map(sum, zip(*lengths_of(conditions), strict=True)))
    num_image = 0 if conditions.image_tokens is None else conditions.image_tokens.shape[1]
    assert features.text.shape[1] == num_image + num_valid


def test_the_discriminator_copies_the_block_after_a_third_of_them():
    torch.manual_seed(0)
    base = build_transformer(tiny15_shapes(num_layers=6))
    own = weights(base.transformer_blocks[2])
    critic = Critic(base, LoraConfig(rank=2), adversarial=True)
    assert critic.discriminator is not None
    torch.testing.assert_close(weights(critic.discriminator.block), own, rtol=0, atol=0)
    x, sigma, conditions = inputs_of("all of different lengths")
    assert critic.logits(x, sigma, conditions).shape == (2, 24)
    before, after = base.transformer_blocks[1], base.transformer_blocks[2]
    for block, changes in ((after, False), (before, True)):
        logits = critic.logits(x, sigma, conditions)
        torch.nn.init.ones_(block.attn.to_v.base_layer.weight)
        assert torch.equal(critic.logits(x, sigma, conditions), logits) != changes


def test_recomputed_blocks_give_the_same_gradients_to_the_bit():
    inputs = inputs_of("all of different lengths")
    found = []
    for recompute in ("none", "selective", "full"):
        network = VelocityModel(published())
        set_kernels(network, KernelsConfig(attention="flash", recompute_blocks=recompute))
        found.append(output_and_gradients(network, inputs[0], network(*inputs)))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_every_weight_that_can_have_an_effect_gets_a_gradient_without_image_or_glyphs():
    x, sigma, conditions = inputs_of("prompts alone")
    network = VelocityModel(published())
    network(x, sigma, conditions).square().sum().backward()
    without = {name for name, p in network.transformer.named_parameters() if p.grad is None}
    # the last block's text leads nowhere
    pattern = (
        r"transformer_blocks\.2\.(attn\.to_add_out|ff_context\.net\.(0\.proj|2))\.(weight|bias)"
    )
    assert len(without) == 6 and all(re.fullmatch(pattern, name) for name in without)


def test_it_has_no_guidance_input():
    x, sigma, conditions = inputs_of("prompts alone")
    model = VelocityModel(published())
    assert not model.guidance_embeds
    with pytest.raises(ValueError, match="leave cfg_distillation out"):
        model(x, sigma, conditions, torch.ones(2))
    with pytest.raises(ValueError, match="leave cfg_distillation out"):
        model.backbone.add_guidance()


def test_conditions_keep_the_lengths_of_quoted_words_on_the_host():
    conditions = tiny15_conditions((2, 4, 1), (0, 3, 2), 3)
    assert conditions.glyph_lengths == (0, 3, 2)
    assert conditions[1:].glyph_lengths == (3, 2)
    assert conditions[torch.tensor([2, 0])].glyph_lengths == (2, 0)
    assert Conditions.cat([conditions, conditions[:1]]).glyph_lengths == (0, 3, 2, 0)
    assert conditions.to("meta").glyph_lengths == (0, 3, 2)
    with pytest.raises(ValueError, match="image tokens and glyphs, or none"):
        Conditions.cat([conditions, tiny15_conditions((1,), (), 3)])


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
    (r"context_embedder_2\.norm", "byt5_in.layernorm"),
    (r"context_embedder_2\.linear_", "byt5_in.fc"),
    (r"image_embedder\.norm_in", "vision_in.proj.0"),
    (r"image_embedder\.linear_1", "vision_in.proj.1"),
    (r"image_embedder\.linear_2", "vision_in.proj.3"),
    (r"image_embedder\.norm_out", "vision_in.proj.4"),
    (r"time_embed\.timestep_embedder(_r)?\.linear_1", r"time\1_in.mlp.0"),
    (r"time_embed\.timestep_embedder(_r)?\.linear_2", r"time\1_in.mlp.2"),
    (r"cond_type_embed", "cond_type_embedding"),
    (r"^transformer_blocks", "double_blocks"),
    (r"(double.*)attn\.to_([qkv])\.", r"\1img_attn_\2."),
    (r"(double.*)attn\.add_([qkv])_proj", r"\1txt_attn_\2"),
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
    """Name a state in the words of the public HunyuanVideo-1.5 code."""
    parts: dict[str, list[Tensor]] = {}
    in_order = sorted(state.items(), key=lambda item: ("_k." in item[0], "_v." in item[0]))
    for name, tensor in sorted(in_order, key=lambda item: "_v." in item[0]):
        for pattern, replacement in ORIGINAL_NAMES:
            name = re.sub(pattern, replacement, name)
        parts.setdefault(name, []).append(tensor)
    original = {name: torch.cat(tensors) for name, tensors in parts.items()}
    for kind in ("weight", "bias"):
        name = f"final_layer.adaLN_modulation.1.{kind}"
        scale, shift = original[name].chunk(2)
        original[name] = torch.cat([shift, scale])
    return original


@pytest.mark.parametrize("layout", ["latent_concat", "text_to_video"])
@torch.no_grad()
def test_an_original_file_is_what_diffusers_computes(layout, tmp_path):
    task = {"latent_concat": "i2v", "text_to_video": "t2v"}[layout]
    source = published(task_type=task)
    original = in_original_names(weights(source))
    wanted = {
        "double_blocks.2.txt_attn_k_norm.weight",
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.bias",
        "byt5_in.fc3.weight",
        "final_layer.adaLN_modulation.1.weight",
    }
    assert wanted <= original.keys() and not original.keys() & weights(source).keys()
    file = tmp_path / "model.pt"
    torch.save(original, file)
    loaded = load_transformer(file, SHAPES, layout=layout)
    x, sigma, conditions = inputs_of("all of different lengths")
    v = VelocityModel(loaded)(x, sigma, conditions)
    if layout == "text_to_video":  # whose channels of the image have no effect at first
        source.x_embedder.proj.weight[:, 4:] = 0
    torch.testing.assert_close(v, as_published(source, x, sigma, conditions), atol=1e-5, rtol=1e-5)
    assert loaded.config["task_type"] == "i2v"


def test_every_key_of_the_original_8b_file_finds_its_place():
    with torch.device("meta"):
        large = HunyuanVideo15Transformer3DModel()  # whose defaults are the published network's
    converted = NAMES.to_diffusers(in_original_names(weights(large)))
    shapes = {name: tensor.shape for name, tensor in converted.items()}
    assert shapes == {name: tensor.shape for name, tensor in large.state_dict().items()}


@pytest.mark.parametrize("is_distilled", [False, True])
def test_a_student_gets_the_names_of_the_original_file(is_distilled):
    state = weights(published(use_meanflow=is_distilled))
    expected, found = in_original_names(state), NAMES.to_original(state)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "time_r_in.mlp.2.bias" in found or not is_distilled


def test_a_lora_student_gets_the_names_of_the_original_linears():
    modules = {"transformer_blocks.1.attn.add_k_proj": "double_blocks.1.txt_attn_k"}
    modules |= {"transformer_blocks.0.ff.net.0.proj": "double_blocks.0.img_mlp.fc1"}
    shapes = {"A": (2, 5), "B": (7, 2)}
    lora = {f"{name}.lora_{m}.weight": torch.randn(shapes[m]) for name in modules for m in "AB"}
    found = NAMES.lora_to_original(lora, dict.fromkeys(modules, 7))
    expected = {
        f"{original}.lora_{m}.weight": lora[f"{name}.lora_{m}.weight"]
        for name, original in modules.items()
        for m in "AB"
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("changes", "layout", "message"),
    [
        ({}, None, "say model.teacher_layout latent_concat or text_to_video, not None"),
        ({}, "token_replace", "say model.teacher_layout latent_concat or text_to_video, not token"),
        ({"use_meanflow": True}, "latent_concat", "distilled to few steps already"),
        ({"in_channels": 14}, "latent_concat", "14 input channels are of no layout of Hunyuan"),
    ],
)
def test_a_file_that_is_no_teacher_is_refused(changes, layout, message, tmp_path):
    file = tmp_path / "model.pt"
    torch.save(in_original_names(weights(published(**changes))), file)
    with pytest.raises(ValueError, match=rf"model\.pt: .*{message}"):
        load_transformer(file, SHAPES, layout=layout)


def test_a_folder_says_itself_what_it_is(tmp_path):
    published().save_pretrained(tmp_path)
    assert_same(load_transformer(tmp_path, SHAPES), published())
    published(use_meanflow=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_meanflow: this network is distilled to few steps"):
        load_transformer(tmp_path, SHAPES)


def test_a_built_network_attends_jointly_from_the_start():
    block: Any = VelocityModel(build_transformer(SHAPES)).backbone.blocks[0]
    assert isinstance(block.attn.processor, JointAttention)
    assert isinstance(VelocityModel(published()).backbone, HunyuanVideo15)
