"""ZeRO-3's side of weights: building sharded, and reading what the engines saved."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from magicdistill.models.networks.placement import WHOLE, Placement
from magicdistill.platform.config import DeepSpeedEngineConfig, EngineConfig, OptimizerConfig
from magicdistill.platform.engine import deepspeed_config
from magicdistill.platform.operators import load_shared_memory_operator


def placement(config: EngineConfig) -> Placement:
    """Return where an engine wants parameters to live: in shards under ZeRO-3."""
    if isinstance(config, DeepSpeedEngineConfig) and config.zero_stage == 3:
        return Zero3(config)
    return WHOLE


class Zero3:
    """Every rank holds its shard; a parameter is whole only while it is gathered."""

    def __init__(self, config: DeepSpeedEngineConfig) -> None:
        self.config = deepspeed_config(config, OptimizerConfig(lr=1.0), num_micro_batches=1)

    def building(self) -> AbstractContextManager[object]:
        """Shard each module as soon as it is built."""
        import deepspeed

        load_shared_memory_operator()
        return deepspeed.zero.Init(config_dict_or_path=self.config)

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[bool]:
        """Gather; rank 0 writes, and its values go to all."""
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
            yield dist.get_rank() == 0


def role_weights(role: Path) -> dict[str, Tensor]:
    """Return the trained weights of a role from its folder in a checkpoint, by module name.

    float32 of the optimiser where DeepSpeed keeps it. Raises FileNotFoundError where no engine
    has saved there.
    """
    state = role / "state"
    if (role / "state.pt").is_file():
        saved = torch.load(role / "state.pt", map_location="cpu", mmap=True, weights_only=True)
        return saved["module"]
    if not state.is_dir():
        raise FileNotFoundError(f"no engine has saved in {role}")
    if not any(state.glob("*_optim_states.pt")):  # ZeRO stage 0 keeps all in one file
        file = state / "mp_rank_00_model_states.pt"
        return torch.load(file, map_location="cpu", weights_only=False)["module"]
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    tensors = get_fp32_state_dict_from_zero_checkpoint(str(role), tag=state.name)
    assert tensors is not None
    return dict(tensors)
