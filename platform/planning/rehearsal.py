"""A dress rehearsal of one rank: a recipe's losses and backwards in full size, without a number.

The method of the recipe runs on tensors that have shapes and no storage, in a process group that
sends nothing. What it computes, keeps and needs at the peak stands beside what the plan says.
Sharding is not rehearsed: parameters are whole, and each gradient goes as soon as it is there.
"""

import itertools
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.library import _scoped_library
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from magicdistill.models.diffusion.rng import Rng
from magicdistill.models.networks.attention import set_kernels
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.networks.sequence_parallel import join_sequence_group
from magicdistill.models.objectives.types import Batch, Method, Pair
from magicdistill.platform.config.recipe import Recipe
from magicdistill.platform.planning.flops import operations
from magicdistill.platform.planning.memory import (
    kept_latents_row,
    number_bytes,
    saved_rows,
    total,
)
from magicdistill.platform.planning.plan import Plan, cycle_updates, plan

TOLERANCE = 0.05
"""How far a figure may be from the plan's, as a share of the plan's."""

aten = torch.ops.aten
FLOPS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
"""torch's formulas of an operator's operations, flash attention on processors included."""


@dataclass(frozen=True)
class Figure:
    """A quantity of one role's update, rehearsed and planned."""

    name: str
    rehearsed: float
    planned: float

    @property
    def is_planned(self) -> bool:
        """Whether the plan is near enough."""
        return abs(self.rehearsed - self.planned) <= TOLERANCE * self.planned


@dataclass(frozen=True)
class RoleRehearsal:
    """What came of one update of a role, of one micro-batch on one rank."""

    role: str
    num_trained: int
    """Number of parameters that the role trains."""
    num_gradients: int
    """Number of these that got a gradient."""
    figures: tuple[Figure, ...]
    """Operations, saved activations and peak; none where the update failed."""
    problems: tuple[str, ...]
    """What is wrong, with the name of the parameter or module and its shapes."""

    @property
    def is_in_order(self) -> bool:
        """Whether nothing is wrong and all figures are as planned."""
        return not self.problems and all(figure.is_planned for figure in self.figures)


def rehearse(
    recipe: Recipe, progress: Callable[[str], object] = lambda _: None
) -> Iterator[RoleRehearsal]:
    """Run one update of each role of a recipe's method, as rank 0 of its workers would.

    `progress` is called with what comes next. Kernels that only GPUs have are rehearsed by the
    flash kernel, whose shapes they share.

    Raises:
        RecipeError: where the recipe cannot be planned.
        RuntimeError: where this process is in a process group already.
    """
    made = plan(recipe)
    with alone_in_group(recipe.cluster.num_workers):
        progress(f"{recipe.name}: building the networks")
        method = build_method(recipe)
        batch = batch_of(recipe, made)
        for role in dict.fromkeys(method.updates(recipe.schedule.num_cycles)):
            progress(f"{recipe.name}: update of the {role}")
            yield rehearse_role(method, role, batch, made)


@contextmanager
def alone_in_group(num_workers: int) -> Iterator[None]:
    """Be rank 0 of a process group whose collectives do nothing."""
    if dist.is_initialized():
        raise RuntimeError("a rehearsal needs a process of its own: this one is in a process group")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_workers)
    try:
        yield
    finally:
        dist.destroy_process_group()


def build_method(recipe: Recipe) -> Method:
    """Build the method as a worker does, with parameters in the engine's precision."""
    with torch.device("meta"):
        method = recipe.method.build(recipe.model.without_weights(), WHOLE)
    sequence = join_sequence_group(recipe.cluster.sequence_parallel)
    kernels = recipe.kernels.model_copy(update={"attention": "flash", "compile_blocks": False})
    dtype = {2: torch.bfloat16, 4: torch.float32}[number_bytes(recipe.engine)]
    for module in method.modules.values():
        set_kernels(module.to(dtype), kernels, sequence)
    return method


def batch_of(recipe: Recipe, made: Plan) -> Batch:
    """Return a micro-batch of the largest bucket with the longest prompts."""
    shapes, sample, count = recipe.model.shapes.transformer, made.sample, made.num_samples
    with torch.device("meta"):
        x0 = torch.empty(count, shapes.latent_channels, sample.frames, sample.height, sample.width)
        tokens, dims = shapes.num_text_tokens, (shapes.text_embed_dim, shapes.pooled_projection_dim)
        given = Conditions(
            text=torch.empty(count, tokens, dims[0]),
            text_mask=torch.empty(count, tokens, dtype=torch.bool),
            pooled=torch.empty(count, dims[1]),
            image_prior=x0[:, :, :1],
            text_lengths=(tokens,) * count,
        )
        null = Conditions.null(
            x0[:, :, :1], num_tokens=tokens, text_dim=dims[0], pooled_dim=dims[1]
        )
        if sample.image_tokens:
            image = torch.empty(count, sample.image_tokens, dims[0])
            given, null = (replace(one, image_tokens=image) for one in (given, null))
        pair = Pair(x0.clone(), x0.clone()) if recipe.method.uses_pairs else None
    return Batch(x0, given, range(count), null, pair)


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Attend by the flash kernel, which torch does not choose for tensors without storage."""

    def flash(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **scaling: Any,
    ) -> Tensor:
        kernel = aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(
            q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scaling.get("scale")
        )[0]

    with _scoped_library("aten", "IMPL") as library:
        library.impl("scaled_dot_product_attention", flash, "AutogradMeta")
        yield


def rehearse_role(method: Method, role: str, batch: Batch, made: Plan) -> RoleRehearsal:
    """Run one update of a role up to its gradients.

    Parameters that have no effect, by the backbone's own word, need none.
    """
    idle = made.recipe.model.shapes.transformer.idle_parameters
    trained = {
        name: parameter
        for name, parameter in method.modules[role].named_parameters()
        if parameter.requires_grad and not (idle and re.search(idle, name))
    }
    waiting, problems = dict(trained), list[str]()
    names = {parameter: name for name, parameter in trained.items()}

    def take(parameter: Tensor) -> None:
        waiting.pop(names[parameter], None)  # type: ignore[index]
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(take) for p in trained.values()]
    meter = _Meter(method.modules.values())
    kept = 0
    rng = _longest(Rng(made.recipe.seed, 0, 0, batch.positions, "meta"), made)
    try:
        with _flash_attention(), meter, method.prepared_for(role):
            loss = method.loss(role, method.modules, batch, rng).total
            kept = meter.live_bytes
            loss.backward()
    except Exception as error:  # whatever a layer raises is a finding
        problems.append(_where(error, method.modules))
    finally:
        for hook in hooks:
            hook.remove()
    if not problems:
        problems += [f"{n} {tuple(p.shape)} gets no gradient" for n, p in waiting.items()]
    return RoleRehearsal(
        role,
        len(trained),
        len(trained) - len(waiting),
        () if problems else _figures(made, role, meter, kept),
        tuple(problems),
    )


def _figures(made: Plan, role: str, meter: "_Meter", kept: int) -> tuple[Figure, ...]:
    mode = made.recipe.kernels.recompute_blocks
    update = next(update for update in cycle_updates(made.recipe) if update.name == role)
    saved = saved_rows(update, made.sample, made.num_samples, recompute=mode)
    latents = kept_latents_row(update, made.sample, made.num_samples)
    return (
        Figure("operations", meter.operations, _planned_operations(made, role)),
        Figure("kept after the forward", kept, total((*saved, latents))),
        Figure("peak", meter.peak_bytes, total(made.peaks[role])),
    )


def _planned_operations(made: Plan, role: str) -> float:
    """Return a rank's operations in one update of a role and one micro-batch.

    The first role makes the rollout that all updates share; one of its own has its largest length.
    """
    updates = cycle_updates(made.recipe)
    forwards = [step for update in updates if update.name == role for step in update.forwards]
    if role == next(update.name for update in updates if update.name != "rollout"):
        forwards += [s for update in updates if update.name == "rollout" for s in update.forwards]
    mode = made.recipe.kernels.recompute_blocks
    of_sample = sum(
        operations(made.sample, replace(step, repeats=step.most or step.repeats), recompute=mode)
        for step in forwards
    )
    return of_sample * made.num_samples / made.sample.sequence_parallel


def _longest(rng: Rng, made: Plan) -> Rng:
    """Return the draws of an update in the last cycle that trains the sampler's last step."""
    cycle, sampler = made.recipe.schedule.num_cycles - 1, made.recipe.method.trained_sampler
    updates = (replace(rng, cycle=cycle, update=number) for number in itertools.count())
    if sampler is None:
        return next(updates)
    return next(u for u in updates if u.grid_index(sampler.num_steps) == sampler.num_steps - 1)


def _where(error: BaseException, modules: Mapping[str, nn.Module]) -> str:
    """Say what went wrong and in which module, with the shapes of its own parameters."""
    names = {
        module: f"{role}.{name}"
        for role, root in modules.items()
        for name, module in root.named_modules()
    }
    place, trace = "outside the networks", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in names:
            own = module.named_parameters(recurse=False)
            shapes = ", ".join(f"{name} {tuple(p.shape)}" for name, p in own)
            place = f"{names[module]} ({shapes})" if shapes else names[module]
        trace = trace.tb_next
    return f"{place}: {type(error).__name__}: {error!s}"


class _Meter(TorchDispatchMode):
    """Adds up operations and the bytes of the storages that live, each once."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.operations = 0.0
        self.live_bytes, self.peak_bytes = 0, 0
        parameters = (p for module in modules for p in module.parameters())
        self._held = {p.untyped_storage()._cdata for p in parameters}
        self._known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := FLOPS.get(func._overloadpacket)) is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known or key in self._held:
            return
        self._known.add(key)
        self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.live_bytes -= count
