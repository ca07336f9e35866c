"""What the doubled score forward saves under ZeRO-3: gathers of the frozen base, and seconds.

`python benchmarks/gathers.py` runs the tiny preset's critic on two ranks on processors. Real and
fake score of one sample a rank are predicted in one forward over a doubled batch, as in training,
and in two forwards. DeepSpeed keeps a small network whole between two forwards; here it must not,
as it cannot with 13 billion parameters. Bytes are those that a rank sends.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from magicdistill.models.networks.conditioning.conditions import Conditions
from magicdistill.models.networks.lora import lora_strength
from magicdistill.platform.config.recipe import load_recipe
from magicdistill.platform.config.sections import DeepSpeedEngineConfig
from magicdistill.platform.engines.deepspeed_import import import_deepspeed
from magicdistill.platform.engines.engine import build_optimizer, deepspeed_config
from magicdistill.platform.engines.zero3 import placement

NUM_RANKS = 2
REPEATS = 20
STRENGTHS = (0.25, 1.0)
WAYS = {"one doubled forward": [STRENGTHS], "two forwards": [(s,) for s in STRENGTHS]}
LATENTS = (16, 5, 8, 8)
KEEP_NOTHING = {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}


def main() -> None:
    """Start the ranks, and print what the first one found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*command, "--nproc-per-node", str(NUM_RANKS), __file__],
        env=os.environ
        | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for way, found in json.loads(result.stdout.splitlines()[-1]).items():
        megabytes, milliseconds = found["bytes"] / 1e6, found["seconds"] * 1e3
        print(f"{way:20} {found['gathers']:4} gathers {megabytes:7.2f} MB {milliseconds:7.1f} ms")


def run_rank() -> None:
    """Measure both ways on this rank."""
    import_deepspeed().init_distributed(dist_backend="gloo")
    torch.set_num_threads(1)
    engine = critic_engine()
    x = torch.randn(1, *LATENTS)
    found = {way: measure(partial(predict, engine, x, forwards)) for way, forwards in WAYS.items()}
    if os.environ["RANK"] == "0":
        print(json.dumps(found))


def critic_engine() -> Any:
    """Return DeepSpeed's engine of the critic, sharded."""
    recipe = load_recipe("portrait-tiny", ["--engine.zero_stage", "3"])
    assert isinstance(recipe.engine, DeepSpeedEngineConfig)
    critic = recipe.method.build(recipe.model, placement(recipe.engine)).modules["critic"]
    config = recipe.schedule.optimizers["critic"]
    settings = deepspeed_config(recipe.engine, num_micro_batches=1)
    settings["zero_optimization"] |= KEEP_NOTHING
    optimizer, _ = build_optimizer([[p for p in critic.parameters() if p.requires_grad]], config)
    return import_deepspeed().initialize(model=critic, optimizer=optimizer, config=settings)[0]


def predict(engine: Any, x: torch.Tensor, forwards: Sequence[Sequence[float]]) -> None:
    """Predict v at every strength; the strengths of one forward share it."""
    conditions = Conditions.null(x[:, :, :1], num_tokens=4, text_dim=64, pooled_dim=64)
    for strengths in forwards:
        count = len(strengths)
        with torch.no_grad(), lora_strength(engine.module, torch.tensor(strengths)):
            engine(
                torch.cat([x] * count),
                torch.full((count,), 0.5),
                Conditions.cat([conditions] * count),
                output="velocity",
            )


def measure(action: Callable[[], None]) -> dict[str, float]:
    """Return gathers, bytes and median seconds of a call."""
    import deepspeed.comm as comm
    from deepspeed.comm.comm import comms_logger

    for _ in range(3):  # DeepSpeed learns the order of the modules
        action()
    seconds = []
    for _ in range(REPEATS):
        comm.barrier()
        start_s = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start_s)
    comm.configure(enabled=True, prof_all=True, verbose=False)
    comms_logger.reset_data()
    action()
    operations = comms_logger.get_raw_data()
    comm.configure(enabled=False)
    gathers = [
        (size, calls)
        for name, sizes in operations.items()
        if "all_gather" in name
        for size, (calls, *_) in sizes.items()
    ]
    return {
        "gathers": sum(calls for _, calls in gathers),
        "bytes": sum(size * calls for size, calls in gathers),
        "seconds": median(seconds),
    }


if __name__ == "__main__":
    run_rank() if "RANK" in os.environ else main()
