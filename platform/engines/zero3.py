"""ZeRO-3's side of weights: networks are built in shards and gathered for a while."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn

from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.platform.config.sections import (
    DeepSpeedEngineConfig,
    EngineConfig,
)
from magicdistill.platform.engines.deepspeed_import import import_deepspeed, inflight_registry
from magicdistill.platform.engines.engine import deepspeed_config


def placement(config: EngineConfig) -> Placement:
    """Return where an engine wants parameters to live: in shards under ZeRO-3."""
    if isinstance(config, DeepSpeedEngineConfig) and config.zero_stage == 3:
        return Zero3(config)
    return WHOLE


class Zero3:
    """Every rank holds its shard; a parameter is whole only while it is gathered."""

    def __init__(self, config: DeepSpeedEngineConfig) -> None:
        self.config = deepspeed_config(config, num_micro_batches=1)

    def building(self) -> AbstractContextManager[object]:
        """Shard each module as soon as it is built."""
        return import_deepspeed().zero.Init(config_dict_or_path=self.config)

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[bool]:
        """Gather; rank 0 writes, and its values go to all."""
        with import_deepspeed().zero.GatheredParameters(list(parameters), modifier_rank=0):
            yield dist.get_rank() == 0


def share_gathers(modules: Iterable[nn.Module]) -> None:
    """Let the engines of modules that hold the same parameters wait for each other's gathers.

    Call before the engines are built. Each gathers ahead of its own modules' use; the other one
    would take a parameter that is under way for one that is there.
    """
    roots = list(modules)
    held = [set(root.parameters()) for root in roots]
    registry: Any = inflight_registry()
    for root, own in zip(roots, held, strict=True):
        if any(own & other for other in held if other is not own):
            root.ds_inflight_param_registry = registry
