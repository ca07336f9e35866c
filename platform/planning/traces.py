"""What one rank does in a forward pass and its backward, recorded from the real network.

The network is built without storage, with one block of each kind, and is run at full width and full
length on torch's meta device: hooks note in which order its modules need their parameters, as
DeepSpeed's ZeRO-3 notes it, and between them what is computed and exchanged. Blocks of one kind do
the same, so a recorded block stands for all of its kind.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from magicdistill.models.methods.forward_passes import ForwardPass
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.backbones.base import BackboneConfig, Sample
from magicdistill.models.networks.backbones.registry import lora_targets
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.config import KernelsConfig
from magicdistill.models.networks.discriminator import Discriminator
from magicdistill.models.networks.lora import add_lora
from magicdistill.models.networks.sequence_parallel import WHOLE_SEQUENCE, SequenceGroup
from magicdistill.models.networks.transformer import VelocityModel, build_transformer
from magicdistill.platform.planning.flops import ATTENTION_BACKWARD, with_rank_of

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
"""The operator that stands for every kernel of attention."""
INTENSITY = 100
"""Operations per byte below which a product of matrices is bound by memory: one row through a
modulation's weights."""


class Parameter(NamedTuple):
    """A parameter of a network."""

    name: str
    numel: int


@dataclass
class Work:
    """What is computed and exchanged for one sample."""

    attention: float = 0
    """Operations of attention in forwards, which are recomputed in a backward too."""
    attention_backward: float = 0
    linear: float = 0
    """Operations of all other products of matrices."""
    moved_bytes: float = 0
    """Bytes that all other operations read and write."""
    exchanged_bytes: float = 0
    """Bytes that the rank sends to others of its sequence group, its own share left out."""
    num_exchanges: int = 0


@dataclass
class Step:
    """A module is called: it needs its own parameters, if it has any, and work follows until the
    next module is called."""

    parameters: tuple[Parameter, ...]
    block: int | None
    """Which block it belongs to, by kind; None for a part outside the blocks."""
    work: Work = field(default_factory=Work)
    reduced: list[int] = field(default_factory=list)
    """Sizes of the gradients that are complete."""


@dataclass(frozen=True)
class Trace:
    """The steps of a forward pass, and those of its backward, recomputation included."""

    forward: tuple[Step, ...]
    backward: tuple[Step, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in order."""
        return self.forward + self.backward


def trace_of(sample: Sample, step: ForwardPass, kernels: KernelsConfig) -> Trace:
    """Return the trace of a pass for one sample, with all blocks of the network.

    It is the same for every kernel of attention, and for compiled blocks.
    """
    alone = with_rank_of(step, sample)
    computed = kernels.model_copy(update={"attention": "sdpa", "compile_blocks": False})
    if step.gradient == "none":
        computed = KernelsConfig()
    run = ForwardPass("", "", step.gradient, blocks=step.blocks)
    return _trace(alone, run, computed)  # type: ignore[arg-type]  frozen: they hash


@cache
def _trace(sample: Sample, step: ForwardPass, kernels: KernelsConfig) -> Trace:
    shapes = sample.shapes
    counts = [block.count for block in shapes.blocks(sample, "all", "none")]
    if step.blocks == "discriminator":
        counts = [1]
    shallow = replace(sample, shapes=shapes.shallow())
    recorder = _record(shallow, step, kernels)
    if shallow.shapes == shapes:
        counts = [1] * sum(counts)
    return Trace(
        tuple(_repeated(recorder.forward, counts, falling=False)),
        tuple(_repeated(recorder.backward, counts, falling=True)),
    )


def _repeated(steps: Sequence[Step], counts: Sequence[int], *, falling: bool) -> Iterator[Step]:
    """Repeat the steps of each block, whose parameters are others every time."""
    for block, group in groupby(steps, key=lambda step: step.block):
        found = list(group)
        if block is None:
            yield from found
            continue
        numbers = range(counts[block])
        for number in reversed(numbers) if falling else numbers:
            for step in found:
                names = (Parameter(f"{number}: {p.name}", p.numel) for p in step.parameters)
                yield replace(step, parameters=tuple(names))


def _record(sample: Sample, step: ForwardPass, kernels: KernelsConfig) -> "Recorder":
    """Run a pass of a shallow network on the meta device."""
    recorder = Recorder(sample.shapes)
    sequence = WHOLE_SEQUENCE
    if sample.sequence_parallel > 1:
        sequence = CountedExchanges(sample.sequence_parallel, recorder)
    dtype = torch.bfloat16 if sample.activation_bytes == 2 else torch.float32
    with torch.device("meta"), recorder.answering_reads():
        network = VelocityModel(build_transformer(sample.shapes))
        judge = Discriminator(network.transformer) if step.blocks == "discriminator" else None
        if sample.lora_rank:
            targets = lora_targets(type(sample.shapes), ())
            add_lora(network.transformer, sample.lora_rank, targets)
        x, sigma, conditions = _inputs(sample)
        module: nn.Module = network.to(dtype)
        set_kernels(network, kernels, sequence)
        call = partial(network.backbone.velocity, x, sigma, conditions, None)
        blocks: Sequence[nn.Module] = network.backbone.blocks
        if step.blocks == "features":
            call = partial(network.backbone.features, x, sigma, conditions, None)
        if judge is not None:
            module, blocks = judge.to(dtype), [judge.block]
            set_kernels(judge, kernels, sequence)
            with torch.no_grad():
                features = network.backbone.features(x, sigma, conditions, None)
            x = features[0]
            call = partial(judge, features)
    if step.gradient in ("none", "inputs"):
        module.requires_grad_(False)
    x.requires_grad_(step.gradient == "inputs")
    recorder.run(module, blocks, call, gradient=step.gradient != "none")
    return recorder


def _inputs(sample: Sample) -> tuple[Tensor, Tensor, Conditions]:
    """Return noisy latents, their sigma, and conditions with the longest text."""
    shapes = sample.shapes
    latents = torch.empty(1, shapes.latent_channels, sample.frames, sample.height, sample.width)
    conditions = Conditions(
        text=torch.empty(1, shapes.num_text_tokens, shapes.text_embed_dim),
        text_mask=torch.ones(1, shapes.num_text_tokens, dtype=torch.bool),
        pooled=torch.empty(1, shapes.pooled_projection_dim),
        image_prior=latents[:, :, :1],
    )
    return latents, torch.empty(1), conditions


class Recorder:
    """Notes the steps of a network that runs on the meta device."""

    def __init__(self, shapes: BackboneConfig) -> None:
        self.shapes = shapes
        self.forward: list[Step] = []
        self.backward: list[Step] = []
        self._steps = self.forward

    @property
    def work(self) -> Work:
        """The work of the module that was called last."""
        return self._steps[-1].work

    def answering_reads(self) -> "_CountedOperations":
        """Count nothing, and answer where the network reads the length of a prompt."""
        self._steps = [Step((), None)]
        return _CountedOperations(self)

    def run(
        self,
        module: nn.Module,
        blocks: Sequence[nn.Module],
        call: Callable[[], Any],
        *,
        gradient: bool,
    ) -> None:
        """Run a forward pass and, with a gradient, its backward."""
        owners = {id(part): at for at, block in enumerate(blocks) for part in block.modules()}
        handles = [
            handle
            for name, part in module.named_modules()
            for handle in self._watch(name, part, owners.get(id(part)))
        ]
        self._steps = self.forward
        self._steps.append(Step((), None))
        with _CountedOperations(self), torch.set_grad_enabled(gradient):
            with _CountedAttention(self):
                output = call()
            if gradient:
                self._steps = self.backward
                self._steps.append(Step((), None))
                self._run_backward(output if isinstance(output, tuple) else (output,))
        for handle in handles:
            handle.remove()

    def _run_backward(self, outputs: tuple[Any, ...]) -> None:
        """Run the backward, in which blocks may be recomputed.

        `torch.autograd.backward` would hide what is called inside it from the mode that counts
        attention, and its engine does not.
        """
        roots = tuple(t for t in outputs if isinstance(t, Tensor) and t.grad_fn is not None)
        gradients = tuple(torch.empty_like(root) for root in roots)
        engine: Any = torch.autograd.Variable._execution_engine
        with _CountedAttention(self):
            engine.run_backward(
                roots, gradients, False, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def _watch(self, name: str, module: nn.Module, block: int | None) -> Iterator[Any]:
        own = tuple(
            Parameter(f"{name}.{key}", parameter.numel())
            for key, parameter in module.named_parameters(recurse=False)
        )

        def before(*_: Any) -> None:
            self._steps.append(Step(own, block))

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                    _before_backward(tensor.grad_fn, before)

        yield module.register_forward_pre_hook(before)
        yield module.register_forward_hook(after)
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                yield parameter.register_post_accumulate_grad_hook(self._complete)

    def _complete(self, parameter: Tensor) -> None:
        self._steps[-1].reduced.append(parameter.numel())
        parameter.grad = None


def _before_backward(node: Any, call: Callable[[], None]) -> None:
    """Call before a node's backward; what was given last, by an outer module, is called first."""
    calls = node.metadata.setdefault("before_backward", [])
    calls.append(call)
    if len(calls) > 1:
        return

    def call_all(gradients: Any) -> None:
        for each in reversed(calls):
            each()

    node.register_prehook(call_all)


class _CountedOperations(TorchDispatchMode):
    """Counts products of matrices, and the bytes that all other operations move."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and _is_read(args[0], kwargs):
            # the one value that a network reads: how long the longest prompt is
            length = self.recorder.shapes.num_text_tokens
            return torch.full(args[0].shape, length, dtype=args[0].dtype, device="cpu")
        out = function(*args, **kwargs)
        if function is ATTENTION:
            self.recorder.work.attention += _forward_operations(*args[:2])
            return out
        if function.is_view or function is torch.ops.aten._unsafe_view.default:
            return out
        moved = sum(tensor.nbytes for tensor in _tensors((args, out)))
        count = flop_registry.get(function.overloadpacket)
        operations = count(*args, **kwargs, out_val=out) if count else 0
        if operations > INTENSITY * moved:
            self.recorder.work.linear += operations
        else:
            self.recorder.work.moved_bytes += moved
        return out


def _is_read(tensor: Tensor, kwargs: Any) -> bool:
    device = kwargs.get("device")
    return tensor.is_meta and device is not None and torch.device(device).type == "cpu"


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


class _CountedAttention(TorchFunctionMode):
    """Lets attention be one operator, which it is not on the meta device of its own accord."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is scaled_dot_product_attention:
            return _Attention.apply(*args[:3], self.recorder)
        return function(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """Attention of queries, keys and values (b h n e), as far as shapes and counts go."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, recorder: Recorder) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.recorder = recorder
        return ATTENTION(q, k, v)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        q, k, v = ctx.saved_tensors
        ctx.recorder.work.attention_backward += ATTENTION_BACKWARD * _forward_operations(q, k)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


def _forward_operations(q: Tensor, k: Tensor) -> int:
    return 4 * q.numel() * k.shape[-2]


class CountedExchanges(SequenceGroup):
    """A sequence group whose other ranks are imagined."""

    def __init__(self, size: int, recorder: Recorder) -> None:
        super().__init__()
        self.size, self.recorder = size, recorder

    def _exchange(self, parts: Tensor) -> Tensor:
        return _Exchange.apply(parts.contiguous(), self.recorder)


class _Exchange(torch.autograd.Function):
    """An all-to-all (p ...), whose backward is one too."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, recorder: Recorder) -> Tensor:
        ctx.recorder = recorder
        _count_exchange(recorder, parts)
        return torch.empty_like(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        _count_exchange(ctx.recorder, gradient)
        return torch.empty_like(gradient), None


def _count_exchange(recorder: Recorder, parts: Tensor) -> None:
    sent = math.prod(parts.shape[1:]) * (parts.shape[0] - 1) * parts.element_size()
    recorder.work.exchanged_bytes += sent
    recorder.work.num_exchanges += 1
