"""Names of HunyuanVideo's original code in diffusers' own, and the other way round.

Both generations of HunyuanVideo are described so: which modules of diffusers one of the original
code is made of.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from magicdistill.models.networks.backbones.backbone import TensorsByName

Modules = Mapping[str, tuple[str, ...]]
"""Modules of the original code, each with those of diffusers that it is made of, in this order."""
LAST_MODULATION = "final_layer.adaLN_modulation.1"
"""The original code modulates by shift and scale there, diffusers by scale and shift."""


@dataclass(frozen=True)
class OriginalNames:
    """The correspondence of a family's two sets of names."""

    outside: Modules
    """Modules outside the blocks."""
    blocks: Mapping[str, tuple[str, Modules]]
    """The blocks by their name in diffusers: that in the original code, and the modules inside."""

    def modules(self, modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Return the original modules that contain the given ones of diffusers.

        All that such a module is made of is named, also what is not given.
        """
        found: dict[str, tuple[str, ...]] = {}
        for module in modules:
            outer, original_outer, inside = "", "", self.outside
            for stem, (original_stem, names) in self.blocks.items():
                if number := re.match(rf"{re.escape(stem)}\.(\d+)\.", module):
                    outer, inside = number[0], names
                    original_outer = f"{original_stem}.{number[1]}."
            inner = module.removeprefix(outer)
            name, parts = next((name, parts) for name, parts in inside.items() if inner in parts)
            found[original_outer + name] = tuple(outer + part for part in parts)
        return found

    def to_original(self, weights: TensorsByName) -> TensorsByName:
        """Rename and fuse the weights of a whole network."""
        modules = self.modules(name.rpartition(".")[0] for name in weights)
        original = {
            f"{name}.{kind}": torch.cat([weights[f"{part}.{kind}"] for part in parts])
            for name, parts in modules.items()
            for kind in ("weight", "bias")
            if f"{parts[0]}.{kind}" in weights
        }
        return _with_exchanged_halves(original)

    def to_diffusers(self, part: TensorsByName) -> TensorsByName:
        """Rename the tensors of an original file and take fused ones apart, into equal parts.

        Names that are not of the original code are not changed.
        """
        found: TensorsByName = {}
        for name, tensor in _with_exchanged_halves(part).items():
            module, dot, kind = name.rpartition(".")
            parts = self._parts(module)
            pieces = tensor.chunk(len(parts)) if len(parts) > 1 else (tensor,)
            found |= {own + dot + kind: piece for own, piece in zip(parts, pieces, strict=True)}
        return found

    def _parts(self, module: str) -> tuple[str, ...]:
        """Return the modules of diffusers that an original one is made of."""
        for stem, (original_stem, names) in self.blocks.items():
            if number := re.match(rf"{re.escape(original_stem)}\.(\d+)\.", module):
                inner = module.removeprefix(number[0])
                return tuple(f"{stem}.{number[1]}.{part}" for part in names.get(inner, (inner,)))
        return self.outside.get(module, (module,))

    def lora_to_original(self, weights: TensorsByName, widths: Mapping[str, int]) -> TensorsByName:
        """Rename and fuse the matrices of a LoRA, `MODULE.lora_A.weight` and `lora_B`.

        The branch of a fused linear has the ranks of all its parts, each of which acts on its own
        rows of the output. `widths` are the output widths of the network's linears.

        Raises:
            ValueError: the last modulation has a branch, whose halves the original code exchanges.
        """
        modules = self.modules(name.rpartition(".lora_")[0] for name in weights)
        if LAST_MODULATION in modules:
            raise ValueError("a LoRA on norm_out.linear has no form in the original layout")
        original: TensorsByName = {}
        for name, parts in modules.items():
            downs = [weights.get(f"{part}.lora_A.weight") for part in parts]
            kept = [down for down in downs if down is not None]
            original[f"{name}.lora_A.weight"] = torch.cat(kept)
            ups = (weights.get(f"{p}.lora_B.weight", torch.empty(widths[p], 0)) for p in parts)
            original[f"{name}.lora_B.weight"] = torch.block_diag(*ups)
        return original


def _with_exchanged_halves(original: TensorsByName) -> TensorsByName:
    """Exchange shift and scale of the last modulation, where it is among the tensors."""

    def exchanged(tensor: Tensor) -> Tensor:
        first, second = tensor.chunk(2)
        return torch.cat([second, first])

    names = [f"{LAST_MODULATION}.{kind}" for kind in ("weight", "bias")]
    return original | {name: exchanged(original[name]) for name in names if name in original}


ENDS: Modules = {
    "img_in.proj": ("x_embedder.proj",),
    "txt_in.t_embedder.mlp.0": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
    "txt_in.t_embedder.mlp.2": ("context_embedder.time_text_embed.timestep_embedder.linear_2",),
    "txt_in.c_embedder.linear_1": ("context_embedder.time_text_embed.text_embedder.linear_1",),
    "txt_in.c_embedder.linear_2": ("context_embedder.time_text_embed.text_embedder.linear_2",),
    "txt_in.input_embedder": ("context_embedder.proj_in",),
    LAST_MODULATION: ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
"""Modules outside the blocks that both generations have."""
DOUBLE: Modules = {
    "img_mod.linear": ("norm1.linear",),
    "txt_mod.linear": ("norm1_context.linear",),
    "img_attn_q_norm": ("attn.norm_q",),
    "img_attn_k_norm": ("attn.norm_k",),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_q_norm": ("attn.norm_added_q",),
    "txt_attn_k_norm": ("attn.norm_added_k",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp.fc1": ("ff.net.0.proj",),
    "img_mlp.fc2": ("ff.net.2",),
    "txt_mlp.fc1": ("ff_context.net.0.proj",),
    "txt_mlp.fc2": ("ff_context.net.2",),
}
"""A double-stream block, except for its queries, keys and values."""
REFINER: tuple[str, Modules] = (
    "txt_in.individual_token_refiner.blocks",
    {
        "norm1": ("norm1",),
        "norm2": ("norm2",),
        "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "self_attn_proj": ("attn.to_out.0",),
        "mlp.fc1": ("ff.net.0.proj",),
        "mlp.fc2": ("ff.net.2",),
        "adaLN_modulation.1": ("norm_out.linear",),
    },
)
REFINER_STEM = "context_embedder.token_refiner.refiner_blocks"
"""A block of the text refiner, and its name in diffusers."""
