"""What a family of transformers says of its shapes, without PyTorch: recipes and plans ask it.

What it says of a network itself is in `backbone`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from magicdistill.models.config import Config
from magicdistill.models.networks.backbones.costs import BlockCosts, Gradient, Part

if TYPE_CHECKING:
    from magicdistill.models.networks.backbones.backbone import Backbone
else:  # the module imports torch, which `--help` does without
    Backbone = Any


class BackboneConfig(Config):
    """The shapes of a transformer of one family.

    A family of one's own is a subclass that names itself in a `Literal` and defines what is
    abstract here. The answers that are not abstract are those of a family that has no pipeline in
    diffusers and that one rank computes alone.
    """

    class_name: ClassVar[str]
    """Name of the network's class, which diffusers writes into config.json as `_class_name`."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Full-name patterns of the linears that get a LoRA where a recipe names none. Their input is
    (b, n, d), so that a strength (b, 1, 1) broadcasts."""
    pipeline: ClassVar[str | None] = None
    """Name of diffusers' image-to-video pipeline, as which a network is exported."""
    stock_call: ClassVar[str | None] = None
    """Python of a model card that samples by that pipeline; None is that of HunyuanVideo. It may
    have the fields {pipeline}, {width}, {height}, {num_frames}, {num_steps} and {guidance}."""
    patch: ClassVar[tuple[int, int, int]] = (1, 2, 2)
    """Latent frames, rows and columns of a token."""
    forward_workspace: ClassVar[float] = 18
    """Tensors of tokens * d that the forward of a block needs for a while, where it keeps none.
    Rehearsed in bf16 for the single-stream block of HunyuanVideo, where it rotates queries."""
    backward_workspace: ClassVar[Mapping[Gradient, float]] = {
        "none": 0,
        "inputs": 13,
        "lora": 10,
        "weights": 4,
    }
    """The same of the backward, in addition to what the block keeps."""

    takes_glyphs: ClassVar[bool] = False
    """Whether the network reads tokens of quoted words beside those of the prompt."""
    max_image_tokens: ClassVar[int] = 0
    """Tokens of a first frame that stand before the text's where each is kept, which a plan
    counts; 0 where the blocks' costs count them, or where they are too few to matter."""
    weights_decide: ClassVar[tuple[str, ...]] = ()
    """Arguments of the network's class that follow the weights and not the preset."""

    kind: str
    """Name of the family, which decides the other fields."""
    text_embed_dim: int
    """Width of the text tokens."""
    pooled_projection_dim: int
    """Width of the pooled text; 0 for a family that takes none."""
    num_text_tokens: int
    """Tokens of the longest prompt."""
    latent_channels: int = 16
    guidance_embeds: bool = False
    """Whether the network takes the guidance scale as an input."""

    @property
    def joined_text_tokens(self) -> int:
        """Text tokens that go through the blocks beside the video's: all, or 0 where the blocks
        only attend to them."""
        return self.num_text_tokens

    @classmethod
    @abstractmethod
    def backbone(cls) -> type[Backbone]:
        """Return what the family answers about a network; imports PyTorch."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the network's class for image-to-video."""

    @property
    @abstractmethod
    def model_dim(self) -> int:
        """The width of the tokens inside."""

    @abstractmethod
    def blocks(self, sample: "Sample", part: Part, gradient: Gradient) -> tuple[BlockCosts, ...]:
        """Return what the blocks of a part cost, at most one entry for each kind of block.

        The entries for `all` tell every kind, also one that the network has none of.
        """

    @property
    def demands_image_tokens(self) -> bool:
        """Whether the network was trained with tokens of the first frame beside every prompt, all
        that its encoder gives."""
        return False

    def shallow(self) -> "BackboneConfig":
        """Return the shapes of the same network with one block of each kind, which stands for all
        of its kind where a plan runs the network; a family that does not say so is run whole.
        """
        return self

    @property
    def idle_parameters(self) -> str | None:
        """Pattern in the names of the parameters that have no effect on an output, and so no
        gradient; None where all have one. The discriminator's block is `discriminator.block`."""
        return None

    def ends_bytes(self, sample: "Sample", part: Part, gradient: Gradient) -> float:
        """Return what one rank keeps for the backward outside the blocks: embeddings and output.

        `part` is not `discriminator`. They are little beside the blocks; 0 leaves them out.
        """
        return 0.0

    def of_weights(self, config: Mapping[str, Any]) -> "BackboneConfig":
        """Return the shapes with what a diffusers configuration of weights decides.

        Raises ValueError where no network of the family is like that.
        """
        return self

    def differences(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the arguments that a diffusers configuration has otherwise, with both values."""
        own = self.arguments()
        names = (own.keys() & config.keys()) - {*self.weights_decide}
        pairs = {name: (_plain(own[name]), _plain(config[name])) for name in sorted(names)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def context_bytes(self, sample: "Sample", part: Part, gradient: Gradient) -> float:
        """Return what one rank keeps for the backward of tensors that every block takes, and that
        no block returns."""
        return 0.0

    def demand_split(self, size: int) -> None:
        """Raise ValueError where a sequence group of `size` ranks cannot share a sample."""
        if size > 1:
            raise ValueError(
                f"the backbone {self.kind} cannot be split: choose cluster.sequence_parallel 1, "
                f"not {size}"
            )

    @classmethod
    def image_layout(cls, config: Mapping[str, Any]) -> str | None:
        """Say in a word how the image enters the network of a diffusers configuration."""
        return None

    @classmethod
    def sees_image(cls, config: Mapping[str, Any]) -> bool:
        """Tell whether the network of a diffusers configuration takes a first frame."""
        return True

    @classmethod
    def image_token_stride(cls, config: Mapping[str, Any]) -> int | None:
        """Return of how many image tokens one is kept for a network as published; None where its
        text encoder sees no first frame."""
        return None

    @classmethod
    def pipeline_of(cls, config: Mapping[str, Any]) -> str | None:
        """Return the name of the pipeline that takes a network of a diffusers configuration."""
        return cls.pipeline


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Sample:
    """One sample in the transformer, and the share of it that one rank holds."""

    shapes: BackboneConfig
    frames: int
    """Latent frames."""
    height: int
    """Latent height."""
    width: int
    """Latent width."""
    sequence_parallel: int = 1
    activation_bytes: int = 2
    """Bytes of one number."""
    lora_rank: int = 0
    image_tokens: int = 0
    """Tokens of the first frame before the text's."""

    @property
    def model_dim(self) -> int:
        """The width of the transformer."""
        return self.shapes.model_dim

    @property
    def video_tokens(self) -> int:
        """Tokens of the whole video."""
        frames, height, width = self.shapes.patch
        return (self.frames // frames) * (self.height // height) * (self.width // width)

    @property
    def own_tokens(self) -> int:
        """Tokens that a rank holds: its share of the video's, and what is joined of the text."""
        return self.video_tokens // self.sequence_parallel + self.joined_tokens

    @property
    def joined_tokens(self) -> int:
        """Tokens that attend together with the video's: text, the first frame's before it."""
        return self.shapes.joined_text_tokens + self.image_tokens

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest text, the first frame's before it included."""
        return self.shapes.num_text_tokens + self.image_tokens

    @property
    def latent_numel(self) -> int:
        """Numbers in the latents."""
        return self.shapes.latent_channels * self.frames * self.height * self.width

    def units(self, count: int | float) -> int | float:
        """Return the bytes of `count` tensors of a rank's tokens times the width d."""
        return count * self.own_tokens * self.model_dim * self.activation_bytes

    def block(
        self,
        count: int,
        saved_bytes: int | float,
        *,
        weights_per_token: int = 12,
        num_heads: int = 0,
        lora_width: int = 0,
    ) -> BlockCosts:
        """Return the costs of `count` blocks with attention over all tokens, video and text.

        `weights_per_token` is the number of weights that a token is multiplied with, in units of
        d^2: 4 around attention and 8 in an MLP four times as wide. Each of `num_heads` returns a
        float32 for every token, beside its output. `lora_width` is the sum of the
        widths, in and out, of the linears that get a LoRA, in units of d. A multiplication and an
        addition are two operations.
        """
        tokens, d = self.video_tokens + self.joined_tokens, self.model_dim
        held = self.own_tokens * self.sequence_parallel
        return BlockCosts(
            count,
            linear=2 * weights_per_token * held * d**2,
            attention=4 * tokens**2 * d,
            saved_bytes=saved_bytes,
            attention_bytes=tokens
            * (d * self.activation_bytes + 4 * num_heads)
            / self.sequence_parallel,
            lora=2 * lora_width * self.lora_rank * held * d,
        )
