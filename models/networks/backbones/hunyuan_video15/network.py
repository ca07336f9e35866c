"""HunyuanVideo-1.5: diffusers' network as a velocity field, over valid tokens of conditions only.

diffusers masks every pair of tokens of which one is padding, which takes gigabytes for a video and
no flash kernel. Here padding is cut off, so that a mask is needed only if the conditions of a
batch differ in length.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from diffusers import HunyuanVideo15Transformer3DModel, ModelMixin
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from magicdistill.models.diffusion.flow import NUM_TRAIN_TIMESTEPS
from magicdistill.models.networks.backbones.backbone import Arguments, Backbone, TensorsByName
from magicdistill.models.networks.backbones.hunyuan_video.network import concat_image_prior
from magicdistill.models.networks.backbones.hunyuan_video15.files import NAMES
from magicdistill.models.networks.backbones.hunyuan_video15.layouts import (
    CONCAT,
    TASKS,
    demand_channels,
    image_layout,
    num_feature_blocks,
)
from magicdistill.models.networks.backbones.joint_attention import (
    JointAttention,
    TextMask,
    split_video,
)
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import AttentionKernel
from magicdistill.models.networks.lora import run_block
from magicdistill.models.networks.sequence_parallel import WHOLE_SEQUENCE, SequenceGroup

PATCH_EMBEDDING = "x_embedder.proj.weight"
PROMPT, GLYPHS, IMAGE = 0, 1, 2
"""Kinds of tokens of conditions, by which the network tells them apart."""


class Lengths(NamedTuple):
    """Numbers of valid tokens of each sample's conditions, on the host."""

    text: tuple[int, ...]
    glyphs: tuple[int, ...]


class BlockInputs(NamedTuple):
    """The arguments of a block; a block returns the first two for the next one."""

    video: Float[Tensor, "b n d"]
    text: Float[Tensor, "b m d"]
    embedding: Float[Tensor, "b d"]
    mask: TextMask | None
    """Valid tokens of the conditions; None where all are valid."""
    rotary: tuple[Tensor, Tensor]


class HunyuanVideo15(Backbone):
    """diffusers' HunyuanVideo15Transformer3DModel for image-to-video.

    The first frame enters beside the noisy latents, and as SigLIP's tokens. There is no
    single-stream block: the discriminator's features are the output of the first third of the
    blocks, and it starts from a copy of the next one. Ours; see `num_feature_blocks`.
    """

    network = HunyuanVideo15Transformer3DModel
    kernels = get_args(AttentionKernel)
    transformer: HunyuanVideo15Transformer3DModel

    def __init__(self, transformer: ModelMixin) -> None:
        """Take the network, whose blocks attend jointly from now on, by torch's choice of kernel
        where no other has been set."""
        super().__init__(transformer)
        attention: Any = self.transformer.transformer_blocks[0].attn
        if not isinstance(attention.processor, JointAttention):
            for block in self.blocks:
                self.set_attention(block, "sdpa", WHOLE_SEQUENCE)

    @classmethod
    def in_diffusers_names(cls, part: TensorsByName) -> TensorsByName:
        """Rename the tensors of an original file."""
        return NAMES.to_diffusers(part)

    @classmethod
    def in_original_names(cls, weights: TensorsByName) -> TensorsByName:
        """Return the names of the original file."""
        return NAMES.to_original(weights)

    @classmethod
    def lora_in_original_names(
        cls, weights: TensorsByName, widths: Mapping[str, int]
    ) -> TensorsByName:
        """Return the names by which ComfyUI knows a LoRA of the original network."""
        return NAMES.lora_to_original(weights, widths)

    @classmethod
    def arguments_of_file(
        cls, arguments: Arguments, sizes: Mapping[str, torch.Size], layout: str | None
    ) -> Arguments:
        """Demand what the tensors tell; whether they are text-to-video they do not."""
        if (embedding := sizes.get(PATCH_EMBEDDING)) is not None:
            demand_channels(embedding[1], arguments["out_channels"])
        if layout not in TASKS:
            raise ValueError(
                "image-to-video and text-to-video networks of HunyuanVideo-1.5 have the same "
                f"tensors: say model.teacher_layout {' or '.join(TASKS)}, not {layout}"
            )
        is_distilled = any("timestep_embedder_r" in name for name in sizes)
        found = arguments | {"task_type": TASKS[layout], "use_meanflow": is_distilled}
        image_layout(found)
        return found

    @classmethod
    def for_image_to_video(
        cls, arguments: Arguments, parts: Iterable[TensorsByName]
    ) -> tuple[Arguments, Iterable[TensorsByName]]:
        """Let a text-to-video network ignore the image at first: zero weights of its channels."""
        if image_layout(arguments) is not None:
            return arguments, parts
        num_noisy = arguments["out_channels"]
        return arguments | {"task_type": TASKS[CONCAT]}, _without_image(parts, num_noisy)

    @property
    def text_dims(self) -> tuple[int, int]:
        """The width of the tokens of Qwen2.5-VL; there is no pooled text."""
        return self.transformer.config["text_embed_dim"], 0

    def velocity(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Predict v in float32."""
        inputs = self.inputs(x_sigma, sigma, conditions, guidance)
        return self.predict(inputs, lengths_of(conditions)).float()

    def features(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> BlockInputs:
        """Run the first third of the blocks; return the input of the next one."""
        inputs = self.inputs(x_sigma, sigma, conditions, guidance)
        return self.first_blocks(inputs, lengths_of(conditions))

    def inputs(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of diffusers' forward: the one place where conditions enter it.

        Glyphs and image tokens that are absent are no tokens (b 0 e): they pass through their
        projections all the same, whose weights so get a gradient in every update.
        """
        if guidance is not None:
            raise ValueError("HunyuanVideo-1.5 has no guidance input: leave cfg_distillation out")
        config, dtype = self.transformer.config, self.transformer.dtype
        text, image = conditions.text, conditions.image_tokens
        glyphs, glyph_mask = self._glyphs(conditions)
        if image is None:
            image = text.new_zeros(len(text), 0, config["image_embed_dim"])
        hidden = concat_image_prior(x_sigma, conditions.image_prior)
        return {
            "hidden_states": hidden.to(dtype),
            "timestep": NUM_TRAIN_TIMESTEPS * sigma,
            "encoder_hidden_states": text.to(dtype),
            "encoder_attention_mask": conditions.text_mask,
            "encoder_hidden_states_2": glyphs.to(dtype),
            "encoder_attention_mask_2": glyph_mask,
            "image_embeds": image.to(dtype),
        }

    def prompt_arguments(self, conditions: Conditions) -> TensorsByName:
        """Return prompt and quoted words, each with its mask; there is no pooled text.

        A pipeline takes at least one token of quoted words, which the mask may hide.
        """
        glyphs, glyph_mask = self._glyphs(conditions)
        if not glyphs.shape[1]:
            glyphs = glyphs.new_zeros(len(glyphs), 1, glyphs.shape[2])
            glyph_mask = glyph_mask.new_zeros(len(glyphs), 1)
        return {
            "prompt_embeds": conditions.text,
            "prompt_embeds_mask": conditions.text_mask,
            "prompt_embeds_2": glyphs,
            "prompt_embeds_mask_2": glyph_mask,
        }

    def _glyphs(self, conditions: Conditions) -> tuple[Float[Tensor, "b q e"], Bool[Tensor, "b q"]]:
        """Return the tokens of quoted words and their mask, of no tokens where they are absent."""
        if conditions.glyphs is not None and conditions.glyph_mask is not None:
            return conditions.glyphs, conditions.glyph_mask
        width, text = self.transformer.config["text_embed_2_dim"], conditions.text
        return text.new_zeros(len(text), 0, width), conditions.text_mask[:, :0]

    def predict(self, inputs: Mapping[str, Any], lengths: Lengths) -> Float[Tensor, "b c f h w"]:
        """Run the whole transformer on the arguments of diffusers' forward, which it equals.

        Known: it treats image tokens that are all zero as absent; here they are valid.
        """
        transformer = self.transformer
        video, text, *modulation = self.first_blocks(inputs, lengths)
        for block in self.blocks[num_feature_blocks(len(self.blocks)) :]:
            video, text = run_block(transformer, block, video, text, *modulation)
        patches = transformer.proj_out(transformer.norm_out(video, modulation[0]))
        time, side = transformer.config["patch_size_t"], transformer.config["patch_size"]
        height, width = inputs["hidden_states"].shape[3:]
        return rearrange(
            patches,
            "b (f h w) (c t y x) -> b c (f t) (h y) (w x)",
            h=height // side,
            w=width // side,
            t=time,
            y=side,
            x=side,
        )

    def first_blocks(self, inputs: Mapping[str, Any], lengths: Lengths) -> BlockInputs:
        """Run the blocks of the discriminator's features on the arguments of diffusers' forward."""
        transformer, latents = self.transformer, inputs["hidden_states"]
        embedder = transformer.time_embed
        # the phases in float32: diffusers takes them from a level in the weights' dtype
        phases = embedder.time_proj(inputs["timestep"]).to(transformer.dtype)
        embedding = embedder.timestep_embedder(phases)
        video = transformer.x_embedder(latents)
        text, mask = self._condition_tokens(inputs, lengths)
        modulation = (embedding, mask, transformer.rope(latents))
        for block in self.blocks[: num_feature_blocks(len(self.blocks))]:
            video, text = run_block(transformer, block, video, text, *modulation)
        return BlockInputs(video, text, *modulation)

    def _condition_tokens(
        self, inputs: Mapping[str, Any], lengths: Lengths
    ) -> tuple[Float[Tensor, "b m d"], TextMask | None]:
        """Return the tokens of image, glyphs and prompt in this order, all valid ones first.

        The mask is None where all samples have as many.
        """
        transformer = self.transformer
        longest, most_glyphs = max(lengths.text), max(lengths.glyphs)
        text, glyphs = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_2"]
        text_mask = inputs["encoder_attention_mask"][:, :longest]
        refiner_mask = text_mask if min(lengths.text) < longest else None
        image = transformer.image_embedder(inputs["image_embeds"])
        glyphs = transformer.context_embedder_2(glyphs[:, :most_glyphs])
        text = transformer.context_embedder(text[:, :longest], inputs["timestep"], refiner_mask)
        kinds = [IMAGE] * image.shape[1] + [GLYPHS] * most_glyphs + [PROMPT] * longest
        kind = transformer.cond_type_embed(torch.tensor(kinds, device=text.device))
        tokens = torch.cat([image, glyphs, text], dim=1) + kind
        totals = tuple(image.shape[1] + sum(sizes) for sizes in zip(*lengths, strict=True))
        if min(totals) == max(totals) == tokens.shape[1]:
            return tokens, None
        glyph_mask = inputs["encoder_attention_mask_2"][:, :most_glyphs]
        valid = torch.cat([text_mask.new_ones(image.shape[:2]), glyph_mask, text_mask], dim=1)
        tokens, valid = valid_first(tokens, valid, max(totals))
        return tokens, None if min(totals) == max(totals) else TextMask(valid, totals)

    @property
    def discriminator_block(self) -> nn.Module:
        """The block after those of the features."""
        return self.blocks[num_feature_blocks(len(self.blocks))]

    @property
    def blocks(self) -> Sequence[Any]:
        """The dual-stream blocks; those of the text refiner stay as they are."""
        return list(self.transformer.transformer_blocks)

    @classmethod
    def set_attention(
        cls, block: nn.Module, kernel: AttentionKernel, sequence: SequenceGroup
    ) -> None:
        """Attend by the kernel, over the tokens of all ranks."""
        attention: Any = block.attn
        attention.set_processor(JointAttention(kernel, sequence))

    def split_sequence(self, sequence: SequenceGroup) -> None:
        """Split the patches and their rotary phases; gather the output's patches."""
        split_video(self.transformer, sequence)


def lengths_of(conditions: Conditions) -> Lengths:
    """Return the numbers of valid tokens of prompts and glyphs."""
    return Lengths(conditions.text_lengths, conditions.glyph_lengths or (0,) * len(conditions))


def valid_first(
    tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"], count: int
) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
    """Return the first `count` tokens and whether they are valid, valid ones first, in order."""
    order = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return tokens.take_along_dim(order[:, :, None], dim=1), valid.gather(1, order)


def _without_image(parts: Iterable[TensorsByName], num_noisy: int) -> Iterable[TensorsByName]:
    for part in parts:
        if PATCH_EMBEDDING in part:
            weight = part[PATCH_EMBEDDING].clone()
            weight[:, num_noisy:] = 0
            part = part | {PATCH_EMBEDDING: weight}
        yield part
