"""Which form an operation takes: Triton kernels on CUDA, plain PyTorch elsewhere.

`METAFORMER_OPS` in the environment chooses: `auto` (the default), or `reference` for plain PyTorch
everywhere.
"""

import importlib
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch import Tensor

from metaformer.errors import UnknownName

_MODES: Final = ("auto", "reference")
_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST: Final = (8, 0)
"""Compute capability from which on tensor cores take bfloat16."""


def triton_usable(x: Tensor) -> bool:
    """Say whether an operation on `x` runs Triton's kernels; makes them known to torch if so.

    Raises:
        ConfigError: METAFORMER_OPS holds an unknown value.
    """
    return _kernels_for(x.device.type, x.device.index or 0) and x.dtype in _DTYPES and x.numel() > 0


def forced_reference() -> bool:
    """Say whether METAFORMER_OPS asks for plain PyTorch."""
    return _mode() == "reference"


def describe() -> str:
    """Say in one line which forms are used on this machine, and why."""
    return _reason_against("cuda", 0) or "Triton kernels"


def working_dtype(x: Tensor) -> torch.dtype:
    """The type an operation computes in: autocast's where that is on, else that of `x`; sums are float32."""
    kind = x.device.type
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Keep autocast from choosing types again, operation by operation.

    Where it is off nothing is entered, as exporters make a graph of its own of what runs inside.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _kernels_for(device: str, index: int) -> bool:
    """Import the kernels where they can run."""
    interpreted = device == "cpu" and _mode() == "auto" and _interpreting()
    if not interpreted and _reason_against(device, index):
        return False
    importlib.import_module("metaformer.ops.kernels")
    return True


# A compiler calls it and takes the answer as it is. torch.compiler.assume_constant_result does the same, but
# imports the compiler.
vars(_kernels_for)["_dynamo_marked_constant"] = True


def _reason_against(device: str, index: int) -> str | None:
    plain = "plain PyTorch"
    if _mode() == "reference":
        return f"{plain}: METAFORMER_OPS asks for it"
    if device != "cuda" or not torch.cuda.is_available():
        return f"{plain}: no CUDA device"
    if torch.version.hip is not None:
        return f"{plain}: the kernels are not tested on ROCm"
    if torch.cuda.get_device_capability(index) < _OLDEST:
        return f"{plain}: the kernels need compute capability {_OLDEST[0]}.{_OLDEST[1]}"
    if not _triton_installed():
        return f"{plain}: Triton is not installed"
    return None


def _mode() -> str:
    mode = os.environ.get("METAFORMER_OPS", "auto")
    if mode not in _MODES:
        raise UnknownName("METAFORMER_OPS", mode, _MODES)
    return mode


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1" and _triton_installed()


def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
