"""Published files of HunyuanVideo-1.5: names of the original code in diffusers' own.

Original names: the public repository Tencent-Hunyuan/HunyuanVideo-1.5,
hyvideo/models/transformers; diffusers' conversion script gives the correspondence.
"""

from magicdistill.models.networks.backbones.hunyuan_video.original_names import (
    DOUBLE,
    ENDS,
    REFINER,
    REFINER_STEM,
    OriginalNames,
)

NAMES = OriginalNames(
    outside={
        **ENDS,
        "time_in.mlp.0": ("time_embed.timestep_embedder.linear_1",),
        "time_in.mlp.2": ("time_embed.timestep_embedder.linear_2",),
        "time_r_in.mlp.0": ("time_embed.timestep_embedder_r.linear_1",),
        "time_r_in.mlp.2": ("time_embed.timestep_embedder_r.linear_2",),
        "byt5_in.layernorm": ("context_embedder_2.norm",),
        "byt5_in.fc1": ("context_embedder_2.linear_1",),
        "byt5_in.fc2": ("context_embedder_2.linear_2",),
        "byt5_in.fc3": ("context_embedder_2.linear_3",),
        "vision_in.proj.0": ("image_embedder.norm_in",),
        "vision_in.proj.1": ("image_embedder.linear_1",),
        "vision_in.proj.3": ("image_embedder.linear_2",),
        "vision_in.proj.4": ("image_embedder.norm_out",),
        "cond_type_embedding": ("cond_type_embed",),
    },
    blocks={
        "transformer_blocks": (
            "double_blocks",
            {
                **DOUBLE,
                **{f"img_attn_{kind}": (f"attn.to_{kind}",) for kind in "qkv"},
                **{f"txt_attn_{kind}": (f"attn.add_{kind}_proj",) for kind in "qkv"},
            },
        ),
        REFINER_STEM: REFINER,
    },
)
