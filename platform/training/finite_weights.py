"""No network whose weights are no finite numbers is saved, exported or registered.

Loss and gradient of an update are judged after the cycle, what the update made of the weights only
by the next one's: the last update before a save has to be looked at here.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from magicdistill.platform.checkpoints.checkpoints import EMA
from magicdistill.platform.checkpoints.engine_state import owners
from magicdistill.platform.cluster import ranks
from magicdistill.platform.engines.ema import Ema
from magicdistill.platform.engines.engine import Engine
from magicdistill.platform.training.health import UnhealthyError


def demand_finite(
    what: str,
    engines: Mapping[str, Engine],
    ema: Ema | None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise UnhealthyError on all ranks where a weight on one is no finite number in a dtype.

    `what` begins the message, such as `unhealthy at cycle 3`; every rank calls it. Judges what the
    optimisers update, float32 also where a network computes in bfloat16, and the average.
    """
    limit = torch.finfo(dtype).max
    tensors = {role: owners(engine.places()) for role, engine in engines.items()}
    if ema is not None:
        tensors[EMA] = ema.average
    beyond = ranks.of_all([name for name, values in tensors.items() if not _within(values, limit)])
    for name in tensors:
        if on_ranks := [str(rank) for rank, names in enumerate(beyond) if name in names]:
            weights = f"weights of {'the average' if name == EMA else f'the {name}'}"
            numbers = str(dtype).removeprefix("torch.")
            raise UnhealthyError(
                f"{what}: {weights} are no finite {numbers} on rank(s) {', '.join(on_ranks)}"
            )


def _within(tensors: Sequence[Tensor], limit: float) -> bool:
    """Tell whether every value is a number of at most `limit` in size.

    The norm of a tensor bounds its values, and is one fused pass over all; only where it lies
    beyond the limit the values themselves are looked at.
    """
    filled = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not filled:
        return True
    norms = torch.stack(torch._foreach_norm(filled)).tolist()
    doubtful = [tensor for tensor, norm in zip(filled, norms, strict=True) if not norm <= limit]
    return all(float(tensor.abs().max()) <= limit for tensor in doubtful)
