"""The dtype that a device computes in fastest, and the one that it computes in where another is asked for."""

import platform
from collections.abc import Callable
from typing import Final

import torch

_X86: Final = ("x86_64", "AMD64")
"""Processors whose instructions are known."""
_CPU: Final[dict[torch.dtype, tuple[tuple[str, Callable[[], bool]], ...]]] = {
    torch.bfloat16: (
        ("AMX", torch.cpu._is_amx_tile_supported),
        ("AVX512_BF16", torch.cpu._is_avx512_bf16_supported),
    ),
    torch.float16: (
        ("AMX_FP16", torch.cpu._is_amx_fp16_supported),
        ("AVX512_FP16", lambda: bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())),
    ),
    torch.int8: (
        ("AMX", torch.cpu._is_amx_tile_supported),
        ("AVX512_VNNI", torch.cpu._is_vnni_supported),
    ),
}
"""Dtype -> instructions that multiply it, the best first, and whether the processor has them."""
_CUDA: Final = (((8, 0), torch.bfloat16), ((7, 0), torch.float16))
"""Least compute capability of tensor cores for a dtype, the best first."""


def fastest_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The floating-point dtype whose products are fastest on a device, and the reason in one line.

    Where a CPU has instructions for int8 the reason names them: int8 needs images that give its ranges.
    """
    if device.type == "cpu":
        found, int8 = (_instructions(dtype) for dtype in (torch.bfloat16, torch.int8))
        if found is None:
            reason = "float32: no instructions of this processor are known that multiply bfloat16"
        else:
            reason = f"bfloat16: the processor multiplies it by {found}"
        if int8 is not None:
            reason += f"; int8, by {int8}, may be faster yet: `metaformer quantize` makes it with your images"
        return torch.float32 if found is None else torch.bfloat16, reason
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


def computed_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a network computes in where `dtype` is asked for: one that the device multiplies.

    That is float32 for 16 bits that an x86 processor has no instructions for: converted back and forth at
    each operation they are many times slower.
    """
    known = device.type == "cpu" and platform.machine() in _X86
    slow = known and dtype in (torch.float16, torch.bfloat16) and _instructions(dtype) is None
    return torch.float32 if slow else dtype


def _instructions(dtype: torch.dtype) -> str | None:
    """The best instructions of this processor that multiply a dtype, or None."""
    return next((name for name, has in _CPU.get(dtype, ()) if has()), None)
