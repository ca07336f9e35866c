"""What a training cycle costs, as ratios in one run: every pair is timed in turn.

Runs the tiny preset with random weights on this machine's processor, without Ray. CPU seconds
count all threads of a process and hardly depend on what else the machine does.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from timing import Seconds, interleaved, median, timed, write_result
from torch import Tensor, multiprocessing, nn

from magicdistill.data_pipeline.config import NullText
from magicdistill.data_pipeline.io.storage import AnyPath
from magicdistill.data_pipeline.latents.cache import (
    LatentRow,
    RowFacts,
    committed_rows,
    publish,
    write_shard,
)
from magicdistill.models.diffusion.flow import add_noise, score_sigma, sigma_grid, x0_from_velocity
from magicdistill.models.diffusion.samplers import rollout
from magicdistill.models.methods.magic_gt import MagicGtMethod
from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.critic import Critic
from magicdistill.models.networks.lora import lora_strength
from magicdistill.models.networks.placement import WHOLE
from magicdistill.models.objectives import adversarial
from magicdistill.models.objectives.dmd import (
    descend,
    dmd_gradient,
    fake_score_loss,
    real_and_fake_x0,
)
from magicdistill.models.objectives.types import Batch
from magicdistill.platform.config.recipe import Recipe, load_recipe
from magicdistill.platform.data.stream_source import open_batches
from magicdistill.platform.runs.run_directory import RunDirectory
from magicdistill.platform.training.callbacks import of_rank
from magicdistill.platform.training.metrics_writer import MetricsWriter
from magicdistill.platform.training.stragglers import Stragglers
from magicdistill.platform.training.worker import Worker

LATENTS = (16, 5, 8, 8)
"""17 frames of 64 x 64."""
NUM_ROWS = 64


class Randomness(Protocol):
    """Where the random numbers of a turn come from."""

    def normal(self, stream: str, shape: Sequence[int]) -> Tensor: ...
    def uniform(self, stream: str) -> Tensor: ...
    def shared_index(self, stream: str, count: int) -> int: ...


class TorchRandomness:
    """Numbers from torch's global generator."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def normal(self, stream: str, shape: Sequence[int]) -> Tensor:
        """Draw standard normals."""
        return torch.randn(self.batch, *shape)

    def uniform(self, stream: str) -> Tensor:
        """Draw one number for each sample."""
        return torch.rand(self.batch)

    def shared_index(self, stream: str, count: int) -> int:
        """Draw an index."""
        return int(torch.randint(count, ()))


class BareLoop:
    """The cycle of magic-gt in bare PyTorch: two networks, two optimisers, the formulas.

    No engines, caches, metrics or reproducible draws. Given the platform's draws it gives the
    platform's losses, which a test checks.
    """

    def __init__(
        self,
        method: MagicGtMethod,
        generator: nn.Module,
        critic: Critic,
        rates: dict[str, Any],
        *,
        ema_decay: float | None,
    ) -> None:
        self.method, self.generator, self.critic = method, generator, critic
        self.trained: dict[str, list[Tensor]] = {
            "generator": [p for p in generator.parameters() if p.requires_grad],
            "critic": [p for p in critic.parameters() if p.requires_grad],
        }
        self.optimizers = {
            role: torch.optim.AdamW(self.trained[role], **rates[role]) for role in self.trained
        }
        self.ema_decay = ema_decay
        self.average = [p.detach().clone() for p in self.trained["generator"]]

    def cycle(
        self, batch: Batch, randomness: Callable[[int], Randomness] | None = None
    ) -> dict[str, float]:
        """Update the critic some times and the generator once; return the last losses."""
        rng = randomness or (lambda update: TorchRandomness(len(batch.x0)))
        conditions, sampler = batch.conditions, self.method.sampler
        assert conditions is not None
        with torch.no_grad():
            visits = rollout(
                self.generator,
                rng(-1).normal("noise", batch.x0.shape[1:]),
                sigma_grid(sampler.num_steps, sampler.shift),
                conditions,
                sampler="euler",
            )
        losses: dict[str, float] = {}
        updates = self.method.num_fake_updates
        for update in range(updates):
            x_hat = visits[rng(update).shared_index("grid", len(visits))][2]
            losses |= self._critic_turn(x_hat, batch, conditions, rng(update))
        x, sigma, _ = visits[rng(updates).shared_index("grid", len(visits))]
        return losses | self._generator_turn(x, sigma, batch, conditions, rng(updates))

    def _noised(self, x0: Tensor, rng: Randomness, stream: str) -> tuple[Tensor, Tensor, Tensor]:
        law = self.method.score_sigma
        sigma = score_sigma(rng.uniform(f"{stream}-sigma"), law.shift, law.min, law.max)
        eps = rng.normal(f"{stream}-eps", x0.shape[1:])
        return add_noise(x0, eps, sigma), sigma, eps

    def _critic_turn(
        self, x_hat: Tensor, batch: Batch, conditions: Conditions, rng: Randomness
    ) -> dict[str, float]:
        x, sigma, eps = self._noised(x_hat, rng, "fake")
        real_x, real_sigma, _ = self._noised(batch.x0, rng, "real")
        score = fake_score_loss(self.critic(x, sigma, conditions, output="velocity"), x_hat, eps)
        logits = self.critic(
            torch.cat([x, real_x]),
            torch.cat([sigma, real_sigma]),
            Conditions.cat([conditions, conditions]),
            output="logits",
        )
        discriminator = adversarial.discriminator_loss(*logits.chunk(2))
        self._step("critic", self.method.lora_loss_scale * score + discriminator)
        return {"critic/fake_score": float(score), "critic/discriminator": float(discriminator)}

    def _generator_turn(
        self, x: Tensor, sigma: Tensor, batch: Batch, conditions: Conditions, rng: Randomness
    ) -> dict[str, float]:
        method = self.method
        for parameter in self.trained["critic"]:
            parameter.requires_grad_(False)
        x_hat = x0_from_velocity(x, self.generator(x, sigma, conditions), sigma)
        x_sigma, score_at, _ = self._noised(x_hat, rng, "score")
        real, fake = real_and_fake_x0(
            lambda *inputs: self.critic(*inputs, output="velocity"),
            self.critic,
            x_sigma.detach(),
            score_at,
            conditions,
            alpha_weak=method.alpha_weak,
            alpha_strong=method.alpha_strong,
        )
        dmd = descend(x_hat, dmd_gradient(x_hat, real, fake))
        with lora_strength(self.critic, 0.0):
            logits = self.critic(x_sigma, score_at, conditions, output="logits")
            fooled = adversarial.generator_loss(logits)
            truth = nn.functional.mse_loss(x_hat, batch.x0)
            weighted = method.adversarial_weight * fooled + method.ground_truth_weight * truth
            self._step("generator", method.dmd_weight * dmd + weighted)
        for parameter in self.trained["critic"]:
            parameter.requires_grad_(True)
        if self.ema_decay is not None:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.trained["generator"], 1 - self.ema_decay)
        return {"generator/dmd": float(dmd), "generator/adversarial": float(fooled)}

    def _step(self, role: str, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained[role], 1.0)
        self.optimizers[role].step()
        self.optimizers[role].zero_grad(set_to_none=True)


def main() -> None:
    """Time all pairs, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("torch", "deepspeed"), default="torch")
    parser.add_argument("--repeats", type=int, default=7, help="Rounds; the table has medians.")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = measure(Path(folder), args.engine, args.repeats, args.batch_size)
    print(format_table(pairs))
    write_result(args.out, {"engine": args.engine, "pairs": pairs})
    print(f"written to {args.out}")


def measure(folder: Path, engine: str, repeats: int, batch_size: int) -> list[dict[str, Any]]:
    """Return each pair with the medians of both sides."""
    torch.set_num_threads(1)
    recipe = bench_recipe(engine, batch_size)
    cache = write_cache(folder / "cache")
    workers = on_workers(folder, recipe, cache, repeats)
    join(0, 1, folder / "alone")
    cycles = interleaved(
        {
            "platform": platform_cycle(folder, recipe, cache),
            "bare": bare_cycle(recipe, cache),
            "fresh rollouts": platform_cycle(folder, with_fresh_rollouts(recipe), cache),
        },
        repeats,
    )
    forwards = interleaved(score_forwards(recipe, cache), repeats)
    return [
        pair("platform cycle / bare PyTorch loop", cycles["platform"], cycles["bare"]),
        pair("2 workers / 1 worker, the same batch", workers[2], workers[1]),
        pair("one doubled score forward / two", forwards["doubled"], forwards["two"]),
        pair("shared rollout / fresh ones", cycles["platform"], cycles["fresh rollouts"]),
    ]


def bench_recipe(engine: str, batch_size: int) -> Recipe:
    """Return portrait-tiny with random weights, and one rollout a cycle for both roles."""
    values = load_recipe("portrait-tiny").model_dump(exclude={"engine"})
    values["model"]["teacher"] = None
    values["method"] |= {"warmup_cycles": 0, "share_rollout": True}
    values["schedule"] |= {"batch_size": batch_size, "num_cycles": 10**6, "sample_every": None}
    return Recipe.model_validate(values | {"engine": {"kind": engine}})


def with_fresh_rollouts(recipe: Recipe) -> Recipe:
    """Return the recipe in which every turn makes its own samples."""
    method = recipe.method.model_copy(update={"share_rollout": False})
    return recipe.model_copy(update={"method": method})


def write_cache(folder: Path) -> AnyPath:
    """Write random latents."""
    torch.manual_seed(0)
    rows = [
        LatentRow(RowFacts(str(i), str(i), str(i), "", "", "", 0, False), torch.randn(LATENTS))
        for i in range(NUM_ROWS)
    ]
    write_shard(folder, rows)
    text = NullText(num_tokens=4, token_dim=64, pooled_dim=64)
    return publish(folder, list(committed_rows(folder).values()), text)


def join(rank: int, world_size: int, meeting: Path) -> None:
    """Join the process group of a trial; DeepSpeed wants the environment too."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world_size)


def platform_cycle(
    folder: Path, recipe: Recipe, cache: AnyPath, rank: int = 0, world_size: int = 1
) -> Callable[[], object]:
    """Return a call that runs the platform's next cycle, its metrics recorded."""
    run = RunDirectory.create(folder, recipe, f"rank-{rank}")
    worker = Worker(run, cache, None, rank=rank, world_size=world_size)
    stragglers = Stragglers(recipe.schedule, worker.loop.step_timer)
    recorder = MetricsWriter(run, recipe.schedule, stragglers)
    cycles = iter(range(10**6))

    def cycle() -> None:
        number = next(cycles)
        worker.loop.run(number, number + 1, of_rank(rank, [stragglers, recorder]))

    return cycle


def bare_cycle(recipe: Recipe, cache: AnyPath) -> Callable[[], object]:
    """Return a call that runs a cycle of the bare loop, on a batch that is already in memory."""
    loop = bare_loop(recipe)
    batch = open_batches(recipe, cache, rank=0, world_size=1, device="cpu")(0, 0)
    return lambda: loop.cycle(batch)


def bare_loop(recipe: Recipe) -> BareLoop:
    """Build the networks that a worker builds."""
    torch.manual_seed(recipe.seed)
    built = recipe.method.build(recipe.model, WHOLE)
    rates = {
        role: {"lr": chosen.lr, "betas": chosen.betas, "weight_decay": chosen.weight_decay}
        for role, chosen in recipe.schedule.optimizers.items()
    }
    generator, critic = built.modules["generator"], built.modules["critic"]
    assert isinstance(recipe.method, MagicGtMethod) and isinstance(critic, Critic)
    decay = recipe.schedule.ema_decay
    return BareLoop(recipe.method, generator, critic, rates, ema_decay=decay)


def score_forwards(recipe: Recipe, cache: AnyPath) -> dict[str, Callable[[], object]]:
    """Return calls for both scores of a batch: at once, and one after the other."""
    critic: nn.Module = recipe.method.build(recipe.model, WHOLE).modules["critic"]
    batch = open_batches(recipe, cache, rank=0, world_size=1, device="cpu")(0, 0)
    x, sigma, conditions = batch.x0, torch.full((len(batch.x0),), 0.5), batch.conditions

    def score(*inputs: Any) -> Tensor:
        return critic(*inputs, output="velocity")

    @torch.no_grad()
    def two() -> None:
        for strength in (0.25, 1.0):
            with lora_strength(critic, strength):
                x0_from_velocity(x, score(x, sigma, conditions), sigma)

    def doubled() -> None:
        assert conditions is not None
        real_and_fake_x0(score, critic, x, sigma, conditions, alpha_weak=0.25, alpha_strong=1.0)

    return {"doubled": doubled, "two": two}


def on_workers(folder: Path, recipe: Recipe, cache: AnyPath, repeats: int) -> dict[int, Seconds]:
    """Time cycles on one worker process and on two, group after group.

    Returns for each size the seconds of rank 0, which waits for the others.
    """
    found: dict[int, list[Seconds]] = {1: [], 2: []}
    context = multiprocessing.get_context("spawn")
    for part in range(3):
        for size, rounds in found.items():
            results = context.SimpleQueue()
            trial = folder / f"group-{part}-{size}"
            trial.mkdir()
            arguments = (size, trial, recipe, cache, repeats, results)
            multiprocessing.spawn(run_rank, arguments, nprocs=size)
            rounds += results.get()
    return {size: median(rounds) for size, rounds in found.items()}


def run_rank(
    rank: int, size: int, folder: Path, recipe: Recipe, cache: AnyPath, repeats: int, results: Any
) -> None:
    """Time a worker's cycles; the first one warms up."""
    torch.set_num_threads(1)
    join(rank, size, folder / "meeting")
    cycle = platform_cycle(folder, recipe, cache, rank, size)
    rounds = [timed(cycle) for _ in range(repeats + 1)]
    if rank == 0:
        results.put(rounds[1:])
    dist.destroy_process_group()


def pair(name: str, first: Seconds, second: Seconds) -> dict[str, Any]:
    """Return a row of the table."""
    return {
        "name": name,
        "first": first._asdict(),
        "second": second._asdict(),
        "cpu_ratio": first.cpu / second.cpu,
        "wall_ratio": first.wall / second.wall,
    }


def format_table(pairs: list[dict[str, Any]]) -> str:
    """Return the pairs as text."""
    lines = [f"{'':40}{'CPU s':>16}{'ratio':>8}{'wall s':>16}{'ratio':>8}"]
    for row in pairs:
        line = f"{row['name']:40}"
        for clock in ("cpu", "wall"):
            both = f"{row['first'][clock]:.3f} / {row['second'][clock]:.3f}"
            line += f"{both:>16}{row[f'{clock}_ratio']:>8.3f}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
