"""DeepSpeed's compiled operators."""

import fcntl
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
FOLDER = Path("~/.cache/magicdistill/operators", ENVIRONMENT)
"""One folder for each environment: two of them would rebuild each other's operators in turn."""


def load_shared_memory_operator() -> None:
    """Load DeepSpeed's shared-memory operator for processors; the first use compiles it.

    torch marks a build by a file that a killed build leaves behind, and whoever meets it waits
    for ever. Here one process at a time holds a lock of the kernel's, which ends with the
    process; a mark found under it is a dead build's. The folder is ours alone, unless
    TORCH_EXTENSIONS_DIR names another.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    if builder is None:  # on GPUs there is none
        return
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(FOLDER.expanduser())))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".building").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / builder.NAME / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)
