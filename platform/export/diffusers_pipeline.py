"""Write a transformer as a pipeline that unmodified diffusers can sample from."""

import copy
from collections.abc import Mapping
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler, ModelMixin
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn

from magicdistill.models.networks.autoencoder.vae import VideoVae, forget_origin
from magicdistill.models.networks.backbones.registry import family_of
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.lora import BASE, IN_PEFT
from magicdistill.models.objectives.config import SamplerConfig
from magicdistill.models.tensor_files import save_file
from magicdistill.platform.export.patch_autoencoder import PatchDecodedAutoencoder

NULL_PROMPT_FILE = "null_prompt.safetensors"
TRANSFORMER = "transformer"
PIPELINE_LORA = "pytorch_lora_weights.safetensors"
"""File of a LoRA that pipelines of diffusers look for."""
ORIGINAL_LORA = "original_lora.safetensors"
"""File of a LoRA in the names of the family's original code, which ComfyUI takes."""
ORIGINAL_PREFIX = "diffusion_model."
"""What precedes these names. Known: ComfyUI's comfy/lora.py for any network, and diffusers."""
KOHYA_LORA = "kohya_lora.safetensors"
"""File of a LoRA in the same names as kohya's scripts and musubi-tuner spell them."""
KOHYA_PREFIX = "lora_unet_"
ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_processor")
IMAGE_ENCODERS = ("image_encoder", "feature_extractor")
"""Parts of the pipelines whose network takes tokens of an image encoder of its own."""


def write_stock_parts(
    folder: Path,
    transformer: ModelMixin,
    sampler: SamplerConfig,
    vae: VideoVae | None,
    null: Conditions | None,
    experts: Mapping[str, Any] | None = None,
) -> None:
    """Write a pipeline except for its transformer, which may have no storage, and its encoders.

    The null prompt's tensors have the names of the pipeline's arguments. Where diffusers has no
    pipeline for the backbone, only the parts are written. A pipeline that leaves guidance to an
    object gets one of the sampler's scale. `experts` are further arguments of a pipeline with two
    transformers.
    """
    family = family_of(transformer)
    parts: dict[str, Any] = {"scheduler": stock_scheduler(sampler)}
    parts["vae"] = stock_vae(vae) if vae else None
    if (name := family.pipeline_of(transformer.config)) is not None:
        pipeline = getattr(diffusers, name)
        takes = signature(pipeline).parameters
        known = (*ENCODERS, *IMAGE_ENCODERS)
        encoders: dict[str, Any] = {encoder: None for encoder in known if encoder in takes}
        if "guider" in takes:
            parts["guider"] = ClassifierFreeGuidance(guidance_scale=sampler.guidance)
        given = parts | encoders | dict(experts or {})
        if vae is not None or "guider" not in takes:  # such a pipeline cannot be without a VAE
            pipeline(transformer=transformer, **given).save_config(folder)
    for part_name, part in parts.items():
        if part is not None:
            part.save_pretrained(folder / part_name)
    if vae:
        forget_origin(folder / "vae" / "config.json")
    if null is not None:
        tensors = family.backbone()(transformer).prompt_arguments(null)
        save_file(tensors, folder / NULL_PROMPT_FILE)


def stock_scheduler(sampler: SamplerConfig) -> FlowMatchEulerDiscreteScheduler:
    """Return diffusers' scheduler with our grid of noise levels for any number of steps."""
    return FlowMatchEulerDiscreteScheduler(
        shift=sampler.shift, stochastic_sampling=sampler.name == "consistency"
    )


def write_pipeline_lora(folder: Path) -> None:
    """Write the LoRA of a folder of peft once more, as `load_lora_weights` of a pipeline reads it.

    From peft's own file the pipeline takes nothing, and only warns.
    """
    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    named = {f"{TRANSFORMER}.{name.removeprefix(IN_PEFT)}": t for name, t in tensors.items()}
    save_file(named, folder / PIPELINE_LORA, {"format": "pt"})


def write_original_lora(folder: Path, transformer: ModelMixin) -> None:
    """Write the LoRA of a folder of peft twice more, in the names of the family's original code.

    One file has these names as they are, which ComfyUI reads, and diffusers too; the other one as
    kohya's scripts spell them. Writes nothing for a family without such names.
    """
    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    linears = (item for item in transformer.named_modules() if isinstance(item[1], nn.Linear))
    widths = {name.removesuffix(f".{BASE}"): part.out_features for name, part in linears}
    own = {name.removeprefix(IN_PEFT): tensor for name, tensor in tensors.items()}
    backbone = family_of(transformer).backbone()
    with suppress(ValueError):
        named = backbone.lora_in_original_names(own, widths)
        prefixed = {f"{ORIGINAL_PREFIX}{name}": tensor for name, tensor in named.items()}
        save_file(prefixed, folder / ORIGINAL_LORA, {"format": "pt"})
        save_file(in_kohya_names(named), folder / KOHYA_LORA, {"format": "pt"})


def in_kohya_names(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spell the names of a LoRA, `MODULE.lora_A.weight` and `lora_B`, as kohya's scripts do.

    The dots of a module become underscores, A is `lora_down` and B `lora_up`, and every module has
    an `alpha`: the branch counts alpha / rank, here 1. Known: musubi-tuner, and diffusers'
    conversion of its files for Wan.
    """
    spelt: dict[str, Tensor] = {}
    for name, tensor in lora.items():
        module, _, matrix = name.partition(".lora_")
        key = KOHYA_PREFIX + module.replace(".", "_")
        if matrix == "A.weight":
            spelt[f"{key}.lora_down.weight"] = tensor
            spelt[f"{key}.alpha"] = tensor.new_tensor(len(tensor))
        else:
            spelt[f"{key}.lora_up.weight"] = tensor
    return spelt


def stock_vae(vae: VideoVae) -> ModelMixin:
    """Return the VAE as a pipeline takes it: diffusers' class, or ours with a patch decoder."""
    autoencoder = stock_autoencoder(vae)
    if vae.patch_decoder is None:
        return autoencoder
    return PatchDecodedAutoencoder.of(vae, autoencoder)


def stock_autoencoder(vae: VideoVae) -> Any:
    """Return diffusers' network, whose own configuration normalises the latents as the VAE does.

    A patch decoder has no place in it (`PatchDecodedAutoencoder`).
    """
    autoencoder = copy.deepcopy(vae.autoencoder)
    vae.family.with_statistics(autoencoder, vae.mean, vae.std)
    return autoencoder
