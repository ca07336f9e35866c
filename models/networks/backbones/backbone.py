"""What a family of transformers answers about a network: all that other code asks of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import AttentionKernel
from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.models.networks.sequence_parallel import SequenceGroup

Arguments = dict[str, Any]
"""Arguments of a network's class."""
TensorsByName = dict[str, Tensor]
"""Tensors by name. They are memory-mapped: a 26 GB file takes memory only for what is copied."""


class Backbone(ABC):
    """A network of one family, seen as a velocity field with features for a discriminator.

    The class methods are about files. What is not abstract is that of a family whose files are
    diffusers folders for image-to-video, without a guidance input, whose configuration names heads
    and their width, and which has one kernel of attention and computes a sample on one rank.
    """

    network: ClassVar[type[ModelMixin]]
    """The network's class; it also has diffusers' mixins for a configuration and for adapters."""
    kernels: ClassVar[tuple[AttentionKernel, ...]] = ("sdpa",)
    """The kernels by which its blocks can attend."""

    def __init__(self, transformer: ModelMixin) -> None:
        """Take the network that is asked about."""
        self.transformer: Any = transformer

    @classmethod
    def in_diffusers_names(cls, part: TensorsByName) -> TensorsByName:
        """Rename the tensors of a published file to those of the network."""
        return part

    @classmethod
    def in_original_names(cls, weights: TensorsByName) -> TensorsByName:
        """Rename the weights of a whole network to those of the family's published files.

        Raises:
            ValueError: there are no such files.
        """
        raise ValueError(f"{cls.network.__name__} is published in the names of diffusers alone")

    @classmethod
    def lora_in_original_names(
        cls, weights: TensorsByName, widths: Mapping[str, int]
    ) -> TensorsByName:
        """Rename a LoRA's `MODULE.lora_A.weight` and `lora_B` alike; raises as the above does.

        `widths` are the output widths of the network's linears.
        """
        return cls.in_original_names(weights)

    @classmethod
    def arguments_of_file(
        cls, arguments: Arguments, sizes: Mapping[str, torch.Size], layout: str | None
    ) -> Arguments:
        """Change the preset's arguments to what the sizes of a file's tensors tell.

        `layout` says of its input what they do not.

        Raises:
            ValueError: they leave a question, or contradict the layout.
        """
        return arguments

    @classmethod
    def for_image_to_video(
        cls, arguments: Arguments, parts: Iterable[TensorsByName]
    ) -> tuple[Arguments, Iterable[TensorsByName]]:
        """Make an image-to-video network of a text-to-video one, which it equals at first."""
        return arguments, parts

    @classmethod
    def takes_guidance(cls, config: Mapping[str, Any]) -> bool:
        """Tell from a configuration whether the network takes the guidance scale as an input."""
        return False

    def add_guidance(self, placement: Placement = WHOLE) -> None:
        """Give the network the guidance scale as an input, which at first has no effect.

        A network that has the input already is not changed.

        Raises:
            ValueError: the family has no such input.
        """
        raise ValueError(
            f"{self.network.__name__} cannot take the guidance scale as an input: leave "
            "cfg_distillation out"
        )

    @property
    def model_dim(self) -> int:
        """The width of the tokens: that of all heads."""
        config = self.transformer.config
        return config["num_attention_heads"] * config["attention_head_dim"]

    @property
    @abstractmethod
    def text_dims(self) -> tuple[int, int]:
        """The widths of text tokens and pooled text."""

    @abstractmethod
    def velocity(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None,
    ) -> Float[Tensor, "b c f h w"]:
        """Predict v in float32, whatever the dtype of the weights.

        `guidance` is the Ho scale of a network that takes it; None is scale 1, no guidance.
        """

    @abstractmethod
    def features(
        self,
        x_sigma: Float[Tensor, "b c f h w"],
        sigma: Float[Tensor, " b"],
        conditions: Conditions,
        guidance: Float[Tensor, " b"] | None,
    ) -> tuple[Any, ...]:
        """Run the first part of the network; return the arguments of `discriminator_block`."""

    def prompt_arguments(self, conditions: Conditions) -> TensorsByName:
        """Return the arguments by which the family's pipeline takes prompts that are embedded."""
        return {
            "prompt_embeds": conditions.text,
            "prompt_attention_mask": conditions.text_mask,
            "pooled_prompt_embeds": conditions.pooled,
        }

    @property
    @abstractmethod
    def discriminator_block(self) -> nn.Module:
        """The block that the discriminator starts from.

        It returns the video's tokens (b n d), alone or before others.
        """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks, which may be compiled and get the attention kernel."""

    @classmethod
    def set_attention(
        cls, block: nn.Module, kernel: AttentionKernel, sequence: SequenceGroup
    ) -> None:
        """Compute the attention of a block, or of a copy of one, as the recipe asks.

        Raises:
            ValueError: the family has no such kernel.
        """
        if kernel not in cls.kernels:
            raise ValueError(
                f"kernels.attention {kernel}: {cls.network.__name__} has {', '.join(cls.kernels)} "
                "alone"
            )

    def split_sequence(self, sequence: SequenceGroup) -> None:
        """Split the video tokens between the blocks over the ranks of a group.

        Raises:
            ValueError: the family cannot, or its heads do not divide.
        """
        raise ValueError(
            f"{self.network.__name__} cannot be split: choose cluster.sequence_parallel 1"
        )
