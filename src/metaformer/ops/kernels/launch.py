"""What launching a kernel takes: registration, the device, row-wise views, and the products' precision."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"
Function = Callable[..., Any]


def forward_op(name: str) -> Callable[[Function], Any]:
    """Register an operation that compilers look into, so that it can be packaged ahead of time too.

    Interpreted kernels cannot be looked into.
    """
    register = custom_op if INTERPRETED else triton_op
    return register(f"metaformer::{name}", mutates_args=())


def backward_op(name: str) -> Callable[[Function], Any]:
    """Register an operation that compilers take as a whole."""
    return custom_op(f"metaformer::{name}", mutates_args=())


def launch(kernel: Any, grid: int, on: Tensor, *arguments: Any, **options: Any) -> None:
    """Run `grid` programs of a kernel on the device of the tensor `on`."""
    with _device(on.device):
        (kernel if INTERPRETED else wrap_triton(kernel))[(grid,)](*arguments, **options)


def rows(x: Tensor) -> Tensor:
    """See a map (B, C, H, W) as (B, H, W, C), laid out so that each position's channels lie side by side."""
    return x.permute(0, 2, 3, 1).contiguous()


def as_map(y: Tensor) -> Tensor:
    """The way back from `rows`: (B, H, W, C) as a channels-last map (B, C, H, W)."""
    return y.permute(0, 3, 1, 2)


def empty_map(x: Tensor, channels: int | None = None) -> Tensor:
    """An empty channels-last map of the height and width of `x`."""
    batch, dim, height, width = x.shape
    return as_map(x.new_empty(batch, height, width, dim if channels is None else channels))


def precision(dtype: torch.dtype) -> str:
    """How kernels multiply: float32 exactly, unless the user allows TensorFloat-32 for CUDA's products."""
    if dtype != torch.float32 or INTERPRETED:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def cdiv(a: int, b: int) -> int:
    """Divide, rounding up."""
    return (a + b - 1) // b


def power_of_two(n: int, least: int = 16) -> int:
    """The next power of two: the lengths that Triton's blocks have."""
    return max(least, 1 << (n - 1).bit_length())


def _device(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels run on the current device, whatever their arguments are on."""
    if device.type == "cuda" and torch.cuda.is_initialized() and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()
