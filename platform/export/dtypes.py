"""The numbers that weights are written and computed in."""

from typing import Literal

import torch

DtypeName = Literal["fp16", "bf16", "fp32", "int8"]
DTYPES: dict[DtypeName, torch.dtype] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "int8": torch.bfloat16,  # of what is computed
}
