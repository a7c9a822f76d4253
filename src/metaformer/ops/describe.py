"""What computes the operations on a device."""

import torch

from metaformer.ops import cpp, triton
from metaformer.ops.backend import mode


def describe(device: torch.device) -> str:
    """One line: the backend of the operations on a device, and why it is that one."""
    return cpp.describe() if device.type == "cpu" and mode() != "reference" else triton.describe()
