"""What the kernels share: registration of operations, launches, precision of products, sizes of blocks."""

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
    """Register an operation that compilers trace into, so that it can be packaged ahead of time too.

    Interpreted kernels cannot be traced.
    """
    register = custom_op if INTERPRETED else triton_op
    return register(f"metaformer::{name}", mutates_args=())


def backward_op(name: str) -> Callable[[Function], Any]:
    """Register an operation that is opaque to compilers."""
    return custom_op(f"metaformer::{name}", mutates_args=())


def launch(kernel: Any, grid: int, on: Tensor, *arguments: Any, **options: Any) -> None:
    """Run `grid` programs of a kernel on the device of the tensor `on`.

    In place of a tensor that is None the kernel gets `on`, and an option that says not to read it.
    """
    pointers = (on if argument is None else argument for argument in arguments)
    with _device(on.device):
        (kernel if INTERPRETED else wrap_triton(kernel))[(grid,)](*pointers, **options)


def precision(dtype: torch.dtype) -> str:
    """How kernels multiply: float32 exactly, unless the user allows TensorFloat-32 for CUDA's products."""
    if dtype != torch.float32 or INTERPRETED:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def cdiv(a: int, b: int) -> int:
    """Divide, rounding up."""
    return (a + b - 1) // b


def power_of_two(n: int) -> int:
    """The next power of two from 16 on: the lengths that Triton's blocks have."""
    return max(16, 1 << (n - 1).bit_length())


def gradient_like(gradient: Tensor, tensor: Tensor | None) -> Tensor:
    """A copy of a gradient in its tensor's dtype and shape; empty where there is no tensor."""
    if tensor is None:
        return gradient.new_empty(0, dtype=torch.float32)
    return gradient.to(tensor.dtype, copy=True).view(tensor.shape)


def empty_gradient(x: Tensor, tensor: Tensor | None) -> Tensor:
    """What `gradient_like` returns, uninitialized."""
    return (
        x.new_empty(0, dtype=torch.float32)
        if tensor is None
        else x.new_empty(tensor.shape, dtype=tensor.dtype)
    )


def _device(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which the device is the current one, where kernels run whatever their arguments are on."""
    if device.type == "cuda" and torch.cuda.is_initialized() and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()
