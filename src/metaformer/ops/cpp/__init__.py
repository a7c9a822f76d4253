"""C++ backend: kernels for CPUs, compiled on the machine when first needed, kept in the cache directory."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from metaformer.ops import onednn
from metaformer.storage import cache_dir

SUFFIXES: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Dtype -> the end of the names of the functions for it."""
_FLAGS: Final = (
    "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared",
)  # fmt: skip
_TIMEOUT: Final = 120
"""Seconds that the compiler may take."""


def supports(*tensors: Tensor, weight: Tensor | None = None) -> bool:
    """Whether kernels run on these tensors: contiguous, of one dtype, on a CPU, no gradient, untraced.

    Args:
        tensors: the activations, at least one.
        weight: what a linear layer multiplies them by, (out, in).
    """
    dtype = tensors[0].dtype
    return (
        dtype in SUFFIXES
        and onednn.supports(*tensors)
        and tensors[0].numel() > 0
        and all(x.is_contiguous() and x.dtype == dtype for x in tensors)
        and load() is not None
        and (weight is None or _multiplies(dtype, weight))
    )


def supports_weight(weight: Tensor) -> bool:
    """Whether the linear kernels take a weight (out, in), as fast as oneDNN does on this processor."""
    return has_linear(weight.dtype) and not any(size % lanes() for size in weight.shape)


@cache
def has_linear(dtype: torch.dtype) -> bool:
    """Whether the linear kernels are as fast as oneDNN's for this dtype on this processor."""
    library = load()
    bits = 0 if library is None else library.linear_dtypes()
    return bool(bits & {torch.float32: 1, torch.bfloat16: 2}.get(dtype, 0))


@cache
def lanes() -> int:
    """Floats in a SIMD register, as the kernels use it; 1 without a library."""
    library = load()
    return 1 if library is None else int(library.simd_lanes())


@cache
def panel() -> int:
    """Columns of a packed weight's panel: what the kernels accumulate at once; 1 without a library."""
    library = load()
    return 1 if library is None else int(library.panel_columns())


@cache
def load() -> ctypes.CDLL | None:
    """The library, compiled by the first process of this machine that asks; None where that is impossible."""
    if reason_against() is not None:
        return None
    try:
        path = _compiled()
        return ctypes.CDLL(str(path)) if _is_trusted(path) else None
    except (OSError, subprocess.SubprocessError):
        return None


def reason_against() -> str | None:
    """Why there can be no library here, or None."""
    if sys.platform != "linux":
        return f"not tried on {sys.platform}"
    return None if _compiler() else "no C++ compiler"


def describe() -> str:
    """One line: what runs on this machine's CPU, and why."""
    if load() is not None:
        return "C++ kernels"
    why = reason_against() or "the C++ kernels could not be compiled, or others may have written them"
    return f"plain PyTorch: {why}"


def _multiplies(dtype: torch.dtype, weight: Tensor) -> bool:
    frozen = not (weight.requires_grad and torch.is_grad_enabled())
    return weight.dtype == dtype and supports_weight(weight) and frozen


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def _compiled() -> Path:
    """Path of the library for these sources, this compiler and this processor."""
    folder = Path(__file__).parent
    sources = sorted(folder.glob("*.cpp"))
    compiler = str(_compiler())
    digest = _digest(compiler, [*sorted(folder.glob("*.h")), *sources])
    path = cache_dir() / "cpp" / f"kernels-{digest}.so"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            output = Path(work) / path.name
            command = [compiler, *_FLAGS, *map(str, sources), "-o", str(output)]
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT)
            output.chmod(0o755)
            os.replace(output, path)
    return path


def _is_trusted(path: Path) -> bool:
    """Whether nobody else can have written the file, whose code is run."""
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022


def _digest(compiler: str, files: list[Path]) -> str:
    digest = hashlib.sha256(f"{_FLAGS} {os.path.realpath(compiler)} {_processor()}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on: machines of different kinds may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
