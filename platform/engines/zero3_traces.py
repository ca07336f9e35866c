"""A trace for each kind of forward, by which ZeRO-3 gathers parameters ahead of their use.

DeepSpeed records in which order modules run from one forward of a role to its next, the backward
included, and then gathers their parameters ahead in that order. It keeps one such trace. A role
runs in several orders: its rollouts have no backward, and the critic is trained in one update and
judges in the other. Each other order would throw the trace away, and gathers would then be waited
for. The test of this file fails where a release of DeepSpeed has moved what is relied on.
"""

import copy
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn


def keep_traces(engine: Any) -> None:
    """Let every kind of forward of a DeepSpeed engine at stage 3 follow a trace of its own.

    The order of a kind must be the same at each call, on all ranks. A kind is what the forward is
    called with (see `_described`), whether it has a gradient, whether the module is trained by
    then, and how many of its forwards already await the same backward.
    """
    offload = engine.optimizer.parameter_offload
    without_trace = offload.param_coordinator
    traces: dict[Hashable, Any] = {}
    awaiting = 0

    def choose(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kind = (
            torch.is_grad_enabled() and awaiting,
            torch.is_grad_enabled(),
            any(parameter.requires_grad for parameter in module.parameters()),
            _described(args),
            tuple((name, _described(value)) for name, value in kwargs.items()),
        )
        if kind not in traces:
            traces[kind] = copy.copy(without_trace)
            traces[kind]._clear_trace_structures()  # lists that the copies would share
        offload.param_coordinator = traces[kind]

    def begin_backward(gradient: Tensor) -> None:
        nonlocal awaiting
        awaiting = 0

    def await_backward(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal awaiting
        outputs = output if isinstance(output, tuple) else (output,)
        with_gradient = [tensor for tensor in outputs if tensor.requires_grad]
        for tensor in with_gradient:
            tensor.register_hook(begin_backward)
        awaiting += bool(with_gradient)

    # before DeepSpeed's own hook, which begins a trace
    engine.module.register_forward_pre_hook(choose, prepend=True, with_kwargs=True)
    engine.module.register_forward_hook(await_backward)


def _described(value: Any) -> Hashable:
    """Return what of an argument can change the order: a tensor's gradient, and words."""
    if isinstance(value, tuple):
        return tuple(map(_described, value))
    if isinstance(value, Tensor):
        return value.requires_grad
    return value if isinstance(value, str) else type(value)
