"""Attention over video and text together, by a recipe's kernel, over split sequences."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from magicdistill.models.networks.config import AttentionKernel, demand_share
from magicdistill.models.networks.sequence_parallel import SequenceGroup

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "flash3": SDPBackend.FLASH_ATTENTION,  # of torch's one flash kernel, which has been replaced
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
Heads = Float[Tensor, "b n h e"]
TextHeads = Float[Tensor, "b m h e"]


@dataclass(frozen=True)
class TextMask:
    """Which text tokens are valid in a batch of prompts of different lengths: the first ones."""

    valid: Bool[Tensor, "b m"]
    lengths: tuple[int, ...]
    """Their numbers, on the host: a kernel that needs them does not wait for the GPU."""


class JointAttention:
    """Attention over video and text tokens together, as diffusers' dual-stream blocks call it."""

    def __init__(self, kernel: AttentionKernel, sequence: SequenceGroup) -> None:
        self.kernel: AttentionKernel = kernel
        self.sequence = sequence

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b n d"],
        encoder_hidden_states: Float[Tensor, "b m d"],
        attention_mask: TextMask | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Return the output of `attn`, a diffusers Attention, for this rank's video and the text.

        The mask says which text tokens are valid; video tokens all are.
        """
        sequence, num_text = self.sequence, encoder_hidden_states.shape[1]
        projected = project(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        q, k, v = (
            torch.cat([sequence.to_heads(video), sequence.own_heads(text)], dim=1)
            for video, text in projected
        )
        out = attend(q, k, v, attention_mask, self.kernel)
        video, text = out[:, :-num_text], out[:, -num_text:]
        video = sequence.to_tokens(video).flatten(2)
        text = sequence.gather(text, dim=2).flatten(2)
        if attn.add_q_proj is None:
            return video, text
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


def project(
    attn: Any,
    video: Float[Tensor, "b n d"],
    text: Float[Tensor, "b m d"],
    rotary: Any,
) -> list[tuple[Heads, TextHeads]]:
    """Return queries, keys and values of video and text, normalised, the video's rotated.

    `attn` is a diffusers Attention, `rotary` its cosines and sines (n e) or None.
    Single-stream blocks project both in one call: under ZeRO-3 each call gathers the weights.
    """

    def streams(linear: nn.Module, text_linear: nn.Module | None) -> list[Tensor]:
        if text_linear is not None:
            both = [linear(video), text_linear(text)]
        else:
            sizes = [video.shape[1], text.shape[1]]
            both = list(linear(torch.cat([video, text], dim=1)).split(sizes, dim=1))
        return [part.unflatten(2, (attn.heads, -1)) for part in both]

    q = streams(attn.to_q, attn.add_q_proj)
    k = streams(attn.to_k, attn.add_k_proj)
    v = streams(attn.to_v, attn.add_v_proj)
    q = [attn.norm_q(q[0]), (attn.norm_added_q or attn.norm_q)(q[1])]
    k = [attn.norm_k(k[0]), (attn.norm_added_k or attn.norm_k)(k[1])]
    if rotary is not None:
        q[0], k[0] = (apply_rotary_emb(x[0], rotary, sequence_dim=1) for x in (q, k))
    return [(stream[0], stream[1]) for stream in (q, k, v)]


def attend(
    q: Heads, k: TextHeads, v: TextHeads, text: TextMask | None, kernel: AttentionKernel
) -> Heads:
    """Attend over all valid tokens, the text's last; the outputs of masked tokens are meaningless.

    Keys may be other tokens than the queries where there is no mask.

    `sdpa` leaves the choice to torch and takes a mask. The other kernels get no mask: if there is
    one, they attend sample by sample over its valid tokens, which come first.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    num_video = q.shape[2] - (0 if text is None else text.valid.shape[1])
    if kernel == "sdpa":
        mask = None if text is None else pad(text.valid[:, None, None], (num_video, 0), value=True)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    elif text is None:
        out = _fused(kernel, q, k, v)
    else:
        ends = (num_video + length for length in text.lengths)
        samples = (
            _fused(kernel, *(x[i : i + 1, :, :end] for x in (q, k, v)))
            for i, end in enumerate(ends)
        )
        out = torch.cat([pad(x, (0, 0, 0, q.shape[2] - x.shape[2])) for x in samples])
    return out.transpose(1, 2)


def _fused(kernel: AttentionKernel, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(BACKENDS[kernel]):
        return scaled_dot_product_attention(q, k, v)


def split_video(transformer: Any, sequence: SequenceGroup) -> None:
    """Split the patches and their rotary phases over a group's ranks; gather the output's patches.

    `transformer` has diffusers' parts x_embedder, rope and proj_out. Raises ValueError where its
    heads do not divide.
    """

    def split_phases(rope: nn.Module, inputs: Any, phases: tuple[Tensor, ...]) -> Any:
        return tuple(sequence.split(part, dim=0) for part in phases)

    demand_share("attention heads", transformer.config["num_attention_heads"], sequence.size)
    sequence.split_output(transformer.x_embedder)
    transformer.rope.register_forward_hook(split_phases)
    sequence.gather_output(transformer.proj_out)
