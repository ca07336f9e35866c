"""Wan: diffusers' network as a velocity field.

Its blocks attend over the video's tokens, and apart from that to the text and, in Wan 2.1, to the
first frame as CLIP sees it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from magicdistill.models.diffusion.flow import NUM_TRAIN_TIMESTEPS
from magicdistill.models.networks.backbones.backbone import Arguments, Backbone, TensorsByName
from magicdistill.models.networks.backbones.joint_attention import attend
from magicdistill.models.networks.backbones.wan.files import (
    PATCH_EMBEDDING,
    demand_image_to_video,
    in_diffusers_names,
    lora_in_original_names,
)
from magicdistill.models.networks.backbones.wan.layout import (
    NUM_IMAGE_TOKENS,
    NUM_TEXT_TOKENS,
    num_feature_blocks,
)
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import AttentionKernel, demand_share
from magicdistill.models.networks.lora import run_block
from magicdistill.models.networks.sequence_parallel import SequenceGroup

MASK_CHANNELS = 4
"""Channels of the mask, one for each frame of a latent frame."""


class BlockInputs(NamedTuple):
    """The arguments of a block, which returns the first for the next one."""

    video: Float[Tensor, "b n d"]
    context: Float[Tensor, "b m d"]
    """Image tokens, where the network takes them, and then text tokens."""
    modulation: Float[Tensor, "b 6 d"]
    rotary: tuple[Tensor, Tensor]


class Wan(Backbone):
    """diffusers' WanTransformer3DModel; the image enters beside the noisy latents."""

    network = WanTransformer3DModel
    kernels = get_args(AttentionKernel)
    transformer: WanTransformer3DModel

    @classmethod
    def in_diffusers_names(cls, part: TensorsByName) -> TensorsByName:
        """Rename the tensors of the original Wan file."""
        return in_diffusers_names(part)

    @classmethod
    def lora_in_original_names(
        cls, weights: TensorsByName, widths: Mapping[str, int]
    ) -> TensorsByName:
        """Return the names by which ComfyUI and diffusers know a LoRA of the original network."""
        return lora_in_original_names(weights)

    @classmethod
    def arguments_of_file(
        cls, arguments: Arguments, sizes: Mapping[str, torch.Size], layout: str | None
    ) -> Arguments:
        """The tensors tell the number of input channels and whether CLIP's tokens are taken."""
        found = dict(arguments)
        if (embedding := sizes.get(PATCH_EMBEDDING)) is not None:
            found["in_channels"] = embedding[1]
            demand_image_to_video(found)
        if not any("image_embedder" in name for name in sizes):
            found |= {"image_dim": None, "added_kv_proj_dim": None}
        return found

    @property
    def text_dims(self) -> tuple[int, int]:
        """The width of UMT5's tokens; there is no pooled text."""
        return self.transformer.config["text_dim"], 0

    def velocity(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Predict v by diffusers' forward, whose parts compute as `set_attention` says."""
        inputs = self.inputs(x_sigma, sigma, conditions, guidance)
        return self.transformer(**inputs, return_dict=False)[0].float()

    def features(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> BlockInputs:
        """Run the first half of the blocks; return the input of the next one."""
        transformer, inputs = self.transformer, self.inputs(x_sigma, sigma, conditions, guidance)
        latents = inputs["hidden_states"]
        _, modulation, text, image = transformer.condition_embedder(
            inputs["timestep"],
            inputs["encoder_hidden_states"],
            inputs["encoder_hidden_states_image"],
        )
        video = transformer.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()
        context = text if image is None else torch.cat([image, text], dim=1)
        shared = (context, modulation.unflatten(1, (6, -1)), transformer.rope(latents))
        for block in transformer.blocks[: num_feature_blocks(len(transformer.blocks))]:
            video = run_block(transformer, block, video, *shared)
        return BlockInputs(video, *shared)

    def inputs(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of diffusers' forward: the one place where conditions enter it.

        The text is padded with zeros to 512 tokens, all of which are attended to, as in the
        published pipelines. A network that takes CLIP's tokens of the first frame sees zeros where
        there are none.
        """
        if guidance is not None:
            raise ValueError("Wan has no guidance input")
        self._keep_phases()
        dtype, image_dim = self.transformer.dtype, self.transformer.config["image_dim"]
        text = conditions.text * conditions.text_mask[:, :, None]
        image = conditions.image_tokens if image_dim else None
        if image_dim and image is None:
            image = text.new_zeros(len(text), NUM_IMAGE_TOKENS, image_dim)
        return {
            "hidden_states": concat_image_prior(x_sigma, conditions.image_prior).to(dtype),
            "timestep": NUM_TRAIN_TIMESTEPS * sigma,
            "encoder_hidden_states": pad(text, (0, 0, 0, NUM_TEXT_TOKENS - text.shape[1])).to(
                dtype
            ),
            "encoder_hidden_states_image": None if image is None else image.to(dtype),
        }

    def prompt_arguments(self, conditions: Conditions) -> TensorsByName:
        """Return the prompt: the pipeline takes neither a mask nor pooled text."""
        return {"prompt_embeds": conditions.text}

    @property
    def discriminator_block(self) -> nn.Module:
        """The first block of the second half."""
        blocks = self.transformer.blocks
        return blocks[num_feature_blocks(len(blocks))]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks, which are of one kind."""
        return list(self.transformer.blocks)

    @classmethod
    def set_attention(
        cls, block: nn.Module, kernel: AttentionKernel, sequence: SequenceGroup
    ) -> None:
        """Attend by the kernel: over the video tokens of all ranks, and to the text on each."""
        parts: Any = block
        parts.attn1.set_processor(SelfAttention(kernel, sequence))
        parts.attn2.set_processor(CrossAttention(kernel))

    def split_sequence(self, sequence: SequenceGroup) -> None:
        """Split the patches and their rotary phases; gather the output's patches."""

        def split_patches(module: nn.Module, inputs: Any, maps: Tensor) -> Tensor:
            tokens = rearrange(maps, "b d f h w -> b (f h w) d")
            return rearrange(sequence.split(tokens, dim=1), "b n d -> b d n 1 1")

        def split_phases(rope: nn.Module, inputs: Any, phases: tuple[Tensor, ...]) -> Any:
            return tuple(sequence.split(part, dim=1) for part in phases)

        heads = self.transformer.config["num_attention_heads"]
        demand_share("attention heads", heads, sequence.size)
        self.transformer.patch_embedding.register_forward_hook(split_patches)
        self.transformer.rope.register_forward_hook(split_phases)
        sequence.gather_output(self.transformer.proj_out)

    def _keep_phases(self) -> None:
        """Make the tables of rotary phases again where a cast, or ZeRO-3 as it built the network,
        has rounded them.

        In bfloat16 their sines would have two to three digits; diffusers keeps them in float32 too.
        """
        rope: Any = self.transformer.rope
        if not getattr(rope, "is_exact", False) or rope.freqs_cos.dtype != torch.float32:
            device = rope.freqs_cos.device
            fresh = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
            rope.freqs_cos, rope.freqs_sin = fresh.freqs_cos.to(device), fresh.freqs_sin.to(device)
            rope.is_exact = True


class SelfAttention:
    """Attention among the video's tokens, as diffusers' blocks of Wan call it."""

    def __init__(self, kernel: AttentionKernel, sequence: SequenceGroup) -> None:
        self.kernel: AttentionKernel = kernel
        self.sequence = sequence

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the output of `attn`, a WanAttention, for this rank's tokens."""
        assert rotary_emb is not None
        phases: Any = tuple(part[0, :, 0] for part in rotary_emb)
        q, k, v = (
            part.unflatten(2, (attn.heads, -1))
            for part in (
                attn.norm_q(attn.to_q(hidden_states)),
                attn.norm_k(attn.to_k(hidden_states)),
                attn.to_v(hidden_states),
            )
        )
        rotated: list[Any] = [apply_rotary_emb(x, phases, sequence_dim=1) for x in (q, k)]
        q, k, v = (self.sequence.to_heads(x) for x in (*rotated, v))
        out = self.sequence.to_tokens(attend(q, k, v, None, self.kernel))
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


class CrossAttention:
    """Attention of the video's tokens to the text and apart from it to the image.

    Every rank has all of both, and its share of the video attends with all heads.
    """

    def __init__(self, kernel: AttentionKernel) -> None:
        self.kernel: AttentionKernel = kernel

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m d"],
        attention_mask: None = None,
        rotary_emb: None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the output of `attn`, a WanAttention."""
        text = encoder_hidden_states[:, -NUM_TEXT_TOKENS:]
        q = self._heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        k, v = attn.norm_k(attn.to_k(text)), attn.to_v(text)
        out = attend(q, self._heads(attn, k), self._heads(attn, v), None, self.kernel).flatten(2)
        if attn.add_k_proj is not None:
            image = encoder_hidden_states[:, :-NUM_TEXT_TOKENS]
            k, v = attn.norm_added_k(attn.add_k_proj(image)), attn.add_v_proj(image)
            seen = attend(q, self._heads(attn, k), self._heads(attn, v), None, self.kernel)
            out = out + seen.flatten(2)
        return attn.to_out[1](attn.to_out[0](out))

    def _heads(self, attn: Any, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n h e"]:
        return tokens.unflatten(2, (attn.heads, -1))


def concat_image_prior(
    x_sigma: Float[Tensor, "b c f h w"], image_prior: Float[Tensor, "b c k h w"] | None
) -> Float[Tensor, "b d f h w"]:
    """Append the mask, 1 at latent frame 0, and the prior, where it ends padded with zeros.

    The published networks expect a prior of all frames: the latents of a clip that is gray after
    its first frame (`VideoVae.image_prior`).
    """
    prior = torch.zeros_like(x_sigma)
    mask = torch.zeros_like(x_sigma[:, :1]).repeat(1, MASK_CHANNELS, 1, 1, 1)
    if image_prior is not None:
        prior[:, :, : image_prior.shape[2]] = image_prior
        mask[:, :, :1] = 1
    return torch.cat([x_sigma, mask, prior], dim=1)
