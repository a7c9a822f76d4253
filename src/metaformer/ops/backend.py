"""What every operation asks first: which backends the environment allows, and the dtype to compute in.

`METAFORMER_OPS` in the environment chooses: `auto` (the default) takes Triton kernels on devices on which
they are verified, `triton` on all that can run them, `reference` plain PyTorch everywhere, CPUs included.
"""

import os
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from metaformer.errors import UnknownName

_MODES: Final = ("auto", "triton", "reference")


def mode() -> str:
    """The value of METAFORMER_OPS.

    Raises:
        ConfigError: METAFORMER_OPS holds an unknown value.
    """
    return from_environment("METAFORMER_OPS", _MODES)


def from_environment(variable: str, values: Collection[str]) -> str:
    """The value of an environment variable that takes one of `values`; the first by default.

    Raises:
        UnknownName: it holds another value.
    """
    value = os.environ.get(variable, next(iter(values)))
    if value not in values:
        raise UnknownName(variable, value, values)
    return value


def working_dtype(x: Tensor) -> torch.dtype:
    """Dtype that an operation computes in: autocast's where that is on, else that of x; sums are float32."""
    kind = x.device.type
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def without_autocast(x: Tensor | Proxy) -> AbstractContextManager[None]:
    """Context in which autocast does not choose dtypes again, operation by operation."""
    kind = "meta" if isinstance(x, Proxy) else x.device.type  # a symbol's device is not known
    if kind == "meta":
        return nullcontext()
    # where it is off nothing is entered, as exporters make a subgraph of what runs inside
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def without_half(x: Tensor) -> Tensor:
    """X, in float32 where it has 16 bits."""
    return x.float() if not isinstance(x, Proxy) and x.dtype in (torch.float16, torch.bfloat16) else x


def is_traced(x: Tensor | Proxy) -> bool:
    """Whether something sees PyTorch's operations on x one by one, and would miss what a kernel does.

    A compiler or exporter, `torch.fx`, `torch.jit.trace`, a transform of `torch.func`, forward-mode
    differentiation, or a mode such as a FLOP counter.
    """
    return (
        torch.compiler.is_compiling()
        or isinstance(x, Proxy)
        or torch._C._get_tracing_state() is not None
        or is_transformed()
        or _has_dispatch_mode()
    )


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is at work, outside a compiler."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def _has_dispatch_mode() -> bool:
    """Whether a mode is active that is shown every operation, other than one that knows of the kernels."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    return any(not getattr(mode, "sees_kernels", False) for mode in _get_current_dispatch_mode_stack())
