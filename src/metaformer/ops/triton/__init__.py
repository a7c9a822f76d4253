"""Triton backend: kernels for CUDA devices, and the operations of `torch.ops.metaformer` made of them.

The modules beside this one need Triton; importing them registers the operations, which `supports` does where
they run.
"""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from metaformer.ops.backend import mode

T = TypeVar("T")
_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST: Final = (8, 0)
"""Compute capability from which on tensor cores take bfloat16."""
_MODULES: Final = ("cycle", "linear", "mlp", "pool")

# A device gets in when the whole suite of operations has passed on it, with the kernels asked for:
#     METAFORMER_OPS=triton python -m pytest tests/ops tests/deploy
# The key is `torch.cuda.get_device_capability()`, the value says on what: "H200, torch 2.15.0, triton 3.9.0".
VERIFIED: Final[dict[tuple[int, int], str]] = {}
"""Compute capabilities on which METAFORMER_OPS=auto takes the kernels."""

_failed: set[str] = set()
"""Operations whose kernels failed to compile or launch in this process."""


def supports(x: Tensor) -> bool:
    """Whether an operation on `x` runs Triton kernels; registers them with torch if so.

    Raises:
        ConfigError: METAFORMER_OPS holds an unknown value.
    """
    return _supports_device(x.device.type, x.device.index or 0) and x.dtype in _DTYPES and x.numel() > 0


def describe() -> str:
    """One line: what runs on this machine's GPU, and why."""
    return _reason_against("cuda", 0) or "Triton kernels"


def call(name: str, reference: Callable[[], T], *arguments: Any) -> T:
    """Run `torch.ops.metaformer.NAME`, or from its first failure to compile or launch on the reference.

    Args:
        name: of the operation.
        reference: computes the same in plain PyTorch.
        arguments: the operation's.
    """
    if name in _failed:
        return reference()
    operation: Callable[..., T] = getattr(torch.ops.metaformer, name)
    if torch.compiler.is_compiling():
        return operation(*arguments)
    try:
        return operation(*arguments)
    except torch.OutOfMemoryError:  # the reference would need more still
        raise
    except Exception as error:
        result = reference()  # a mistake of the caller's fails here too, and is no kernel's
        _failed.add(name)
        first_line = str(error).partition("\n")[0]
        warnings.warn(
            f"Triton operation {name} failed, and plain PyTorch runs in its place: "
            f"{type(error).__name__}: {first_line}",
            stacklevel=2,
        )
        return result


def gradients(
    name: str,
    reference: Callable[..., Tensor],
    grad_out: Tensor,
    tensors: Sequence[Tensor | None],
    *arguments: Any,
) -> list[Tensor | None]:
    """Gradients for an operation's tensors, none for those that are not there, by the operation NAME.

    Args:
        name: of the operation that computes them.
        reference: the first operation on `tensors` in plain PyTorch, of which autograd computes the same.
        grad_out: the gradient of its result.
        tensors: the first operation's.
        arguments: of the operation NAME, after `grad_out` and the tensors.
    """
    found = call(
        name, lambda: _reference_gradients(reference, tensors, grad_out), grad_out, *tensors, *arguments
    )
    return [None if x is None else grad for x, grad in zip(tensors, found, strict=True)]


def _reference_gradients(
    reference: Callable[..., Tensor], tensors: Sequence[Tensor | None], grad_out: Tensor
) -> list[Tensor | None]:
    """Gradients of `reference(*tensors)` for each tensor, by autograd."""
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
        present = [x for x in leaves if x is not None]
        found = iter(torch.autograd.grad(reference(*leaves), present, grad_out, allow_unused=True))
    return [None if x is None else next(found) for x in leaves]


def _supports_device(device: str, index: int) -> bool:
    """Import the kernels where they can run."""
    interpreted = device == "cpu" and mode() == "triton" and _is_interpreting()
    if not interpreted and _reason_against(device, index):
        return False
    for module in _MODULES:
        importlib.import_module(f"{__name__}.{module}")
    return True


# Compilers call it and take the answer as a constant. torch.compiler.assume_constant_result does the same,
# but imports the compiler.
vars(_supports_device)["_dynamo_marked_constant"] = True


def _reason_against(device: str, index: int) -> str | None:
    plain = "plain PyTorch"
    if mode() == "reference":
        return f"{plain}: METAFORMER_OPS asks for it"
    if device != "cuda" or not torch.cuda.is_available():
        return f"{plain}: no CUDA device"
    if torch.version.hip is not None:
        return f"{plain}: the Triton kernels are not tested on ROCm"
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST:
        return f"{plain}: the Triton kernels need compute capability {_OLDEST[0]}.{_OLDEST[1]}"
    if not _is_installed():
        return f"{plain}: Triton is not installed"
    if mode() == "auto" and capability not in VERIFIED:
        version = ".".join(map(str, capability))
        return f"{plain}: the Triton kernels are not verified on {version} (METAFORMER_OPS=triton takes them)"
    return None


def _is_interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1" and _is_installed()


def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
