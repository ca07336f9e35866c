"""The one place that imports DeepSpeed, and the patches that it needs.

The rest of the project calls `import_deepspeed`, so that no process uses DeepSpeed unpatched and
one that trains without it is left alone. The test of this file fails where a release of DeepSpeed
has moved what is patched.
"""

from typing import Any


def import_deepspeed() -> Any:
    """Import DeepSpeed and return it, with two costly things turned off that this project lacks.

    Changes DeepSpeed for the whole process; a second call changes nothing.
    """
    import deepspeed
    from deepspeed.runtime import compiler

    _skip_operator_probes(deepspeed)
    _skip_compilation(compiler)
    return deepspeed


def inflight_registry() -> Any:
    """Return a new list of the parameters that ZeRO-3 is gathering."""
    import_deepspeed()
    from deepspeed.runtime.zero.partitioned_param_coordinator import InflightParamRegistry

    return InflightParamRegistry()


def _skip_operator_probes(deepspeed: Any) -> None:
    """Say that no compiled operator is there.

    On processors the first process group asks the compiler whether each of DeepSpeed's operators
    could be built, and then builds the shared-memory all-reduce of its inference engine, which
    takes a minute. Training here uses none of them.
    """
    deepspeed.ops.__compatible_ops__ = {}


def _skip_compilation(compiler: Any) -> None:
    """Leave functions that DeepSpeed decorates as compiled ones as they are.

    Only those of its Muon optimiser are. An engine imports that module to see that its own
    optimiser is another one, and the decorators would import torch's compiler, for seconds.
    """
    compiler.compile = lambda: compiler.dummy_decorator
