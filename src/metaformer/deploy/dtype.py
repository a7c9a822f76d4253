"""The dtype that a device computes in fastest."""

from collections.abc import Callable
from typing import Final

import torch

_CPU: Final[tuple[tuple[str, Callable[[], bool]], ...]] = (
    ("AMX", torch.cpu._is_amx_tile_supported),
    ("AVX512_BF16", torch.cpu._is_avx512_bf16_supported),
)
"""Instructions that multiply bfloat16, and whether the processor has them."""
_CUDA: Final = (((8, 0), torch.bfloat16), ((7, 0), torch.float16))
"""Least compute capability of tensor cores for a dtype, the best first."""


def fastest_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype whose products are fastest on a device, and the reason in one line."""
    if device.type == "cpu":
        found = [name for name, has in _CPU if has()]
        if found:
            return torch.bfloat16, f"bfloat16: the processor multiplies it by {found[0]}"
        return torch.float32, "float32: no instructions of this processor are known that multiply bfloat16"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        for least, dtype in _CUDA:
            if capability >= least:
                name = str(dtype).removeprefix("torch.")
                return (
                    dtype,
                    f"{name}: tensor cores multiply it from compute capability {least[0]}.{least[1]} on",
                )
    return torch.float32, f"float32: nothing faster is known of {device.type} devices like this"
