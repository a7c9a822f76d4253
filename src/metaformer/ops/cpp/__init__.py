"""C++ backend: kernels for CPUs, compiled on the machine when first needed, kept in the cache directory.

`METAFORMER_CPP_ARCH` in the environment chooses the instructions: `native` (the default) are the processor's,
`x86-64-v3` AVX2 and no more, `x86-64-v4` AVX-512 without those of bfloat16.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from metaformer.errors import OutputError
from metaformer.ops import onednn
from metaformer.ops.backend import from_environment, without_autocast
from metaformer.storage import cache_dir, sync

SUFFIXES: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Dtype -> the end of the names of the functions for it."""
_FLAGS: Final = ("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_ARCHS: Final = {
    "native": (("-march=native",), ()),
    "x86-64-v3": (("-march=x86-64-v3",), ("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")),
    "x86-64-v4": (("-march=x86-64-v4",), ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
}
"""Values of METAFORMER_CPP_ARCH -> the compiler's flags, and what the processor must have (Linux's names)."""
_TIMEOUT: Final = 120
"""Seconds that the compiler may take."""
_MAX_BYTES: Final = 64 << 20
"""Size of a file that is certainly no library of ours."""
_log: Final = logging.getLogger(__name__)


class UntrustedLibrary(OutputError):
    """A library that somebody else may have written; its code is not run."""


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


def supports_under_autocast(x: Tensor) -> bool:
    """`supports` of an operation that autocast leaves in the dtype of x."""
    if x.device.type != "cpu":
        return False
    with without_autocast(x):
        return supports(x)


def supports_weight(weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the linear kernels take a weight (out, in) on this processor, rather than oneDNN.

    It is of the dtype that they compute in, or converted to `dtype`.
    """
    return has_linear(dtype or weight.dtype) and not any(size % lanes() for size in weight.shape)


@cache
def has_linear(dtype: torch.dtype) -> bool:
    """Whether this processor has the instructions for which linear kernels of this dtype are written."""
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
def instructions() -> str:
    """What the kernels multiply with on this processor, in this process; empty without a library."""
    library = load()
    if library is None:
        return ""
    library.instructions.restype = ctypes.c_char_p
    return bytes(library.instructions()).decode()


@cache
def load() -> ctypes.CDLL | None:
    """The library, compiled by the first process of this machine that asks; None where that is impossible.

    Raises:
        ConfigError: METAFORMER_CPP_ARCH holds an unknown value.
    """
    if reason_against() is not None:
        return None
    name = f"kernels-{_digest(str(_compiler()))}.so"
    reasons: list[str] = []
    for folder in (_cache_folder, _private_folder):
        try:
            path = _compiled(folder(), name)
            library = ctypes.CDLL(str(path))
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(_reason(error))
            if isinstance(error, UntrustedLibrary | subprocess.TimeoutExpired):
                break
        else:
            if reasons:
                _log.warning("C++ kernels are compiled to %s (%s)", path.parent, reasons[0])
            return library
    _log.warning("no C++ kernels, plain PyTorch computes instead (%s)", "; ".join(dict.fromkeys(reasons)))
    return None


def reason_against() -> str | None:
    """Why there can be no library here, or None."""
    if sys.platform != "linux":
        return f"not tried on {sys.platform}"
    missing = sorted(set(_ARCHS[arch()][1]) - set(_processor().split()))
    if missing:
        return f"METAFORMER_CPP_ARCH asks for {arch()}, and the processor lacks {missing[0]}"
    return None if _compiler() else "no C++ compiler"


def arch() -> str:
    """The value of METAFORMER_CPP_ARCH.

    Raises:
        ConfigError: METAFORMER_CPP_ARCH holds an unknown value.
    """
    return from_environment("METAFORMER_CPP_ARCH", _ARCHS)


def describe() -> str:
    """One line: what runs on this machine's CPU, and why."""
    if load() is not None:
        return f"C++ kernels ({instructions()})"
    why = reason_against() or "the C++ kernels could not be compiled, or others may have written them"
    return f"plain PyTorch: {why}"


def _multiplies(dtype: torch.dtype, weight: Tensor) -> bool:
    frozen = not (weight.requires_grad and torch.is_grad_enabled())
    return weight.dtype == dtype and weight.device.type == "cpu" and supports_weight(weight) and frozen


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def _cache_folder() -> Path:
    """Folder of the libraries in the cache directory."""
    folder = cache_dir() / "cpp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _private_folder() -> Path:
    """Folder of this user alone among the temporary files, for those who have no cache directory.

    Raises:
        OutputError: others may write in the folder of that name, or have made it.
    """
    folder = Path(tempfile.gettempdir()) / f"metaformer-cpp-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OutputError(f"{folder}: others may write in it")
    return folder


def _compiled(folder: Path, name: str) -> Path:
    """Path of the library, compiled anew unless the hash beside it, which is written last, is its own."""
    path, record = folder / name, folder / f"{name}.sha256"
    library = _read_trusted(path)
    if library is not None and _read_trusted(record) == _record(name, library):
        return path
    with tempfile.TemporaryDirectory(dir=folder) as work:
        output = Path(work) / name
        sources = sorted(map(str, Path(__file__).parent.glob("*.cpp")))
        command = [str(_compiler()), *_flags(), *sources, "-o", str(output)]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT)
        output.chmod(0o755)
        sync(output)
        os.replace(output, path)
        output.write_bytes(_record(name, path.read_bytes()))
        output.chmod(0o644)
        sync(output)
        os.replace(output, record)
    return path


def _flags() -> tuple[str, ...]:
    return (*_ARCHS[arch()][0], *_FLAGS)


def _record(name: str, library: bytes) -> bytes:
    """Content of the file beside a library: a hash of its name and bytes."""
    return f"{hashlib.sha256(name.encode() + library).hexdigest()}\n".encode()


def _read_trusted(path: Path) -> bytes | None:
    """A file's bytes; None where there is none, or it is a pipe, a device or far too large.

    Raises:
        UntrustedLibrary: others may have written it.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:  # a pipe would be waited for
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
                return None
            if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
                raise UntrustedLibrary(f"{path}: others may have written it; remove it")
            return stream.read()
    except FileNotFoundError:
        return None


def _reason(error: Exception) -> str:
    """Why there is no library, in one line."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.decode(errors="replace").splitlines() if line.strip()]
        return f"the compiler failed: {lines[0] if lines else f'status {error.returncode}'}"
    return " ".join(str(error).split())


def _digest(compiler: str) -> str:
    """Hash of what a library is compiled from: the sources, the compiler and the processor."""
    folder = Path(__file__).parent
    digest = hashlib.sha256(f"{_flags()} {os.path.realpath(compiler)} {_processor()}".encode())
    for file in [*sorted(folder.glob("*.h")), *sorted(folder.glob("*.cpp"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on: machines of different kinds may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
