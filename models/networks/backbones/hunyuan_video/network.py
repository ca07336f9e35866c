"""HunyuanVideo: diffusers' network as a velocity field, over valid text tokens only.

diffusers builds a dense mask over all tokens, which no flash kernel takes. Here padding is cut
off the text, so that a mask is needed only if the prompts of a batch differ in length.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoTokenReplaceSingleTransformerBlock,
    HunyuanVideoTokenReplaceTransformerBlock,
)
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.diffusion.flow import NUM_TRAIN_TIMESTEPS, per_sample
from magicdistill.models.networks.backbones.backbone import Arguments, Backbone, TensorsByName
from magicdistill.models.networks.backbones.hunyuan_video.files import (
    NAMES,
    PATCH_EMBEDDING,
    in_diffusers_names,
    widened,
)
from magicdistill.models.networks.backbones.hunyuan_video.layouts import (
    condition_type,
    image_layout,
    input_layout,
)
from magicdistill.models.networks.backbones.joint_attention import (
    JointAttention,
    TextMask,
    split_video,
)
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import AttentionKernel
from magicdistill.models.networks.lora import run_block
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.sequence_parallel import SequenceGroup

TOKEN_REPLACE_BLOCKS = (
    HunyuanVideoTokenReplaceTransformerBlock,
    HunyuanVideoTokenReplaceSingleTransformerBlock,
)


class BlockInputs(NamedTuple):
    """The arguments of a block; a block returns the first two for the next one."""

    video: Float[Tensor, "b n d"]
    text: Float[Tensor, "b m d"]
    embedding: Float[Tensor, "b d"]
    mask: TextMask | Tensor | None
    """Valid text tokens, or all for diffusers' own attention; None where all are valid."""
    rotary: tuple[Tensor, Tensor]
    first_frame_embedding: Tensor | None
    num_first_frame: int
    """Number of tokens of the first frame."""


class HunyuanVideo(Backbone):
    """diffusers' HunyuanVideoTransformer3DModel.

    The image enters beside the noisy latents (`latent_concat`, and without a mask SkyReels-V1), or
    it replaces the first latent frame (`token_replace`, the published HunyuanVideo-I2V).
    """

    network = HunyuanVideoTransformer3DModel
    kernels = get_args(AttentionKernel)
    transformer: HunyuanVideoTransformer3DModel

    @classmethod
    def in_diffusers_names(cls, part: TensorsByName) -> TensorsByName:
        """Rename the tensors of the original HunyuanVideo file."""
        return in_diffusers_names(part)

    @classmethod
    def in_original_names(cls, weights: TensorsByName) -> TensorsByName:
        """Return the names of the original HunyuanVideo file."""
        return NAMES.to_original(weights)

    @classmethod
    def lora_in_original_names(
        cls, weights: TensorsByName, widths: Mapping[str, int]
    ) -> TensorsByName:
        """Return the names by which ComfyUI and diffusers know a LoRA of the original network."""
        return NAMES.lora_to_original(weights, widths)

    @classmethod
    def arguments_of_file(
        cls, arguments: Arguments, sizes: Mapping[str, torch.Size], layout: str | None
    ) -> Arguments:
        """The tensors tell the number of input channels and whether guidance is embedded."""
        guidance_embeds = any("guidance_embedder" in name for name in sizes)
        found = arguments | {"guidance_embeds": guidance_embeds}
        if (embedding := sizes.get(PATCH_EMBEDDING)) is None:
            return found
        layout = input_layout(embedding[1], arguments["out_channels"], layout)
        return found | {
            "in_channels": embedding[1],
            "image_condition_type": condition_type(layout),
        }

    @classmethod
    def for_image_to_video(
        cls, arguments: Arguments, parts: Iterable[TensorsByName]
    ) -> tuple[Arguments, Iterable[TensorsByName]]:
        """Add the channels of the image prior, with zero weights, where there are none."""
        if image_layout(arguments) is not None:
            return arguments, parts
        num_extra = arguments["out_channels"] + 1
        in_channels = arguments["in_channels"] + num_extra
        changed = {"in_channels": in_channels, "image_condition_type": "latent_concat"}
        return arguments | changed, widened(parts, num_extra)

    @classmethod
    def takes_guidance(cls, config: Mapping[str, Any]) -> bool:
        """Tell whether the guidance scale is embedded."""
        return config["guidance_embeds"]

    def add_guidance(self, placement: Placement = WHOLE) -> None:
        """Add the embedding of the scale.

        Its last linear is zero, so that a fresh student equals its teacher at any scale.
        """
        embedding = self.transformer.time_text_embed
        if self.transformer.config["guidance_embeds"]:
            return
        with placement.building():
            embedder = TimestepEmbedding(embedding.time_proj.num_channels, self.model_dim)
        last = list(embedder.linear_2.parameters())
        with placement.gathered(last) as kept:
            if kept:
                for parameter in last:
                    torch.nn.init.zeros_(parameter)
        embedding.guidance_embedder = embedder
        self.transformer.register_to_config(guidance_embeds=True)

    @property
    def text_dims(self) -> tuple[int, int]:
        """The widths of the tokens of a Llama or LLaVA and of CLIP's pooled text."""
        config = self.transformer.config
        return config["text_embed_dim"], config["pooled_projection_dim"]

    def velocity(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Predict v; a network that replaces the first frame says nothing about it.

        There v leads straight to the prior.
        """
        inputs = self.inputs(x_sigma, sigma, conditions, guidance)
        v = self.predict(inputs, text_lengths(conditions)).float()
        if not self._replaces_first_frame:
            return v
        to_prior = x_sigma[:, :, :1] - _first_frame(conditions)
        return torch.cat([to_prior / per_sample(sigma, to_prior), v[:, :, 1:]], dim=2)

    def features(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> BlockInputs:
        """Run the double-stream blocks; return the input of the first single-stream block."""
        inputs = self.inputs(x_sigma, sigma, conditions, guidance)
        return self.double_stream(inputs, text_lengths(conditions))

    def inputs(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of diffusers' forward: the one place where conditions enter it.

        Image tokens stand before the text tokens. Known: 003 section 3. The scale of a
        guidance-embedded network enters times 1000.
        """
        config, dtype = self.transformer.config, self.transformer.dtype
        if self._replaces_first_frame:
            hidden = torch.cat([_first_frame(conditions), x_sigma[:, :, 1:]], dim=2)
        else:
            hidden = concat_image_prior(x_sigma, conditions.image_prior)
            hidden = hidden[:, : config["in_channels"]]  # SkyReels-V1 takes no mask
        text, mask = conditions.text, conditions.text_mask
        if conditions.image_tokens is not None:
            text = torch.cat([conditions.image_tokens, text], dim=1)
            mask = torch.cat([mask.new_ones(conditions.image_tokens.shape[:2]), mask], dim=1)
        if config["guidance_embeds"] and guidance is None:
            guidance = torch.ones_like(sigma)
        if guidance is not None and not config["guidance_embeds"]:
            raise ValueError("this transformer has no guidance input (guidance_embeds is false)")
        return {
            "hidden_states": hidden.to(dtype),
            "timestep": NUM_TRAIN_TIMESTEPS * sigma,
            "encoder_hidden_states": text.to(dtype),
            "encoder_attention_mask": mask,
            "pooled_projections": conditions.pooled.to(dtype),
            "guidance": None if guidance is None else NUM_TRAIN_TIMESTEPS * guidance,
        }

    def predict(
        self, inputs: Mapping[str, Any], lengths: tuple[int, ...]
    ) -> Float[Tensor, "b c f h w"]:
        """Run the whole transformer on the arguments of diffusers' forward, which it equals.

        `lengths` are the numbers of valid text tokens.
        """
        transformer = self.transformer
        video, text, *modulation = self.double_stream(inputs, lengths)
        for block in transformer.single_transformer_blocks:
            video, text = run_block(transformer, block, video, text, *modulation)
        patches = transformer.proj_out(transformer.norm_out(video, modulation[0]))
        _, height, width = self._grid(inputs["hidden_states"])
        side = transformer.config["patch_size"]
        return rearrange(
            patches,
            "b (f h w) (c t y x) -> b c (f t) (h y) (w x)",
            h=height,
            w=width,
            t=transformer.config["patch_size_t"],
            y=side,
            x=side,
        )

    def double_stream(self, inputs: Mapping[str, Any], lengths: tuple[int, ...]) -> BlockInputs:
        """Run the double-stream blocks on the arguments of diffusers' forward; see `predict`."""
        transformer = self.transformer
        latents, timestep = inputs["hidden_states"], inputs["timestep"]
        longest = max(lengths)
        text = inputs["encoder_hidden_states"][:, :longest]
        text_mask = inputs["encoder_attention_mask"][:, :longest]
        embedding, first_frame_embedding = transformer.time_text_embed(
            timestep, inputs["pooled_projections"], inputs["guidance"]
        )
        video = transformer.x_embedder(latents)
        text = transformer.context_embedder(text, timestep, text_mask)
        mask: TextMask | Tensor | None = None
        if min(lengths) < longest:
            mask = TextMask(text_mask, lengths)
            attention: Any = self.discriminator_block.attn
            if not isinstance(attention.processor, JointAttention):
                # diffusers' own attention takes a mask over all tokens
                seen = text_mask.new_ones(video.shape[:2])
                mask = torch.cat([seen, text_mask], dim=1)[:, None, None]
        _, height, width = self._grid(latents)
        modulation = (
            embedding,
            mask,
            transformer.rope(latents),
            first_frame_embedding,
            height * width,
        )
        for block in transformer.transformer_blocks:
            video, text = run_block(transformer, block, video, text, *modulation)
        return BlockInputs(video, text, *modulation)

    @property
    def discriminator_block(self) -> nn.Module:
        """The first single-stream block."""
        return self.transformer.single_transformer_blocks[0]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of both kinds; those of the text refiner stay as they are."""
        return [
            *self.transformer.transformer_blocks,
            *self.transformer.single_transformer_blocks,
        ]

    @classmethod
    def set_attention(
        cls, block: nn.Module, kernel: AttentionKernel, sequence: SequenceGroup
    ) -> None:
        """Attend by the kernel, over the tokens of all ranks."""
        attention: Any = block.attn
        attention.set_processor(JointAttention(kernel, sequence))
        if sequence.size > 1 and isinstance(block, TOKEN_REPLACE_BLOCKS):

            def count_own_first_frame(block: nn.Module, inputs: tuple[Any, ...]) -> Any:
                *others, num_first_frame = inputs
                num_own = inputs[0].shape[1]
                return *others, min(max(num_first_frame - sequence.rank * num_own, 0), num_own)

            block.register_forward_pre_hook(count_own_first_frame)

    def split_sequence(self, sequence: SequenceGroup) -> None:
        """Split the patches and their rotary phases; gather the output's patches."""
        split_video(self.transformer, sequence)

    @property
    def _replaces_first_frame(self) -> bool:
        return self.transformer.config["image_condition_type"] == "token_replace"

    def _grid(self, latents: Float[Tensor, "b c f h w"]) -> tuple[int, int, int]:
        """Return the numbers of patches along time, height and width."""
        frames, height, width = latents.shape[2:]
        side = self.transformer.config["patch_size"]
        return frames // self.transformer.config["patch_size_t"], height // side, width // side


def concat_image_prior(
    x_sigma: Float[Tensor, "b c f h w"], image_prior: Float[Tensor, "b c 1 h w"] | None
) -> Float[Tensor, "b d f h w"]:
    """Append the zero-padded first-frame latent and its mask (1 at latent frame 0). Known: 003."""
    prior = torch.zeros_like(x_sigma)
    mask = torch.zeros_like(x_sigma[:, :1])
    if image_prior is not None:
        prior[:, :, :1] = image_prior
        mask[:, :, :1] = 1
    return torch.cat([x_sigma, prior, mask], dim=1)


def text_lengths(conditions: Conditions) -> tuple[int, ...]:
    """Return the numbers of valid text tokens, the image tokens before them included."""
    tokens = conditions.image_tokens
    num_image = 0 if tokens is None else tokens.shape[1]
    return tuple(num_image + length for length in conditions.text_lengths)


def _first_frame(conditions: Conditions) -> Tensor:
    if conditions.image_prior is None:
        raise ValueError("this network generates from a first frame: conditions.image_prior")
    return conditions.image_prior
