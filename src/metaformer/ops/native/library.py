"""The C++ kernels as a library: compiled where it is first needed, kept in the cache, called with tensors."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from metaformer.ops import onednn
from metaformer.storage import cache_dir

SIGNATURES: Final = {
    "attention": "pplllli",
    "depthwise": "pppplllliiffi",
    "mlp": "pppppppppplllliifi",
    "stencil": "ppllllii",
    "product": "ppppppllliifi",
    "pool_norm": "pppppllllffi",
    "layer_norm": "ppppllfi",
    "cycle_means": "ppplllli",
    "cycle_shares": "pplli",
    "cycle_mix": "pppppppppppppplllli",
}
"""Kernel -> its parameters: pointers, long and int numbers, floats. The last is the number of threads."""
FLOAT_SIGNATURES: Final = {"mlp_pack": "pplli", "mlp_backward": "pppppppppplllii"}
"""The same of those for float32 alone."""
_TYPES: Final = {"p": ctypes.c_void_p, "l": ctypes.c_long, "i": ctypes.c_int, "f": ctypes.c_float}
_SUFFIXES: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_FLAGS: Final = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
)
_LONGEST: Final = 120
"""Seconds that the compiler may take."""
Argument = Tensor | int | float | None
Call = tuple[Callable[..., None], tuple[Argument, ...]]
_local = threading.local()


def usable(*maps: Tensor) -> bool:
    """Say whether a kernel runs on these tensors: no gaps in memory, one type, where oneDNN would run.

    Nor do they where PyTorch's tracer runs, which would not see them.
    """
    first = maps[0]
    return (
        all(onednn.usable(map_) for map_ in maps)
        and first.dtype in _SUFFIXES
        and first.numel() > 0
        and all(map_.is_contiguous() and map_.dtype == first.dtype for map_ in maps)
        and load() is not None
        and torch._C._get_tracing_state() is None
    )


def call(kernel: str, dtype: torch.dtype, *arguments: Argument) -> None:
    """Call a kernel for maps of a type, with PyTorch's number of threads; None stands for no tensor."""
    function = getattr(load(), f"{kernel}_{_SUFFIXES[dtype]}")
    notes: list[Call] | None = getattr(_local, "notes", None)
    if notes is not None:
        notes.append((function, arguments))
    function(
        *(word.data_ptr() if isinstance(word, Tensor) else word for word in arguments),
        torch.get_num_threads(),
    )


@contextmanager
def noted() -> Iterator[list[Call]]:
    """Collect the calls that this thread makes: function, and arguments but for the number of threads."""
    notes: list[Call] = []
    before: list[Call] | None = getattr(_local, "notes", None)
    _local.notes = notes
    try:
        yield notes
    finally:
        _local.notes = before
        if before is not None:
            before += notes


@cache
def load() -> ctypes.CDLL | None:
    """The library, compiled by the first process of this machine that asks; None where that cannot be."""
    if reason_against() is not None:
        return None
    try:
        place = _built()
        if not _own(place):
            return None
        library = ctypes.CDLL(str(place))
    except (OSError, subprocess.SubprocessError):
        return None
    tables = *((SIGNATURES, suffix) for suffix in _SUFFIXES.values()), (FLOAT_SIGNATURES, "float32")
    for table, suffix in tables:
        for kernel, letters in table.items():
            function = getattr(library, f"{kernel}_{suffix}")
            function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
    return library


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Say whether the library's products are as quick as oneDNN's on this machine."""
    library = load()
    types = 0 if library is None else library.products()
    return bool(types & {torch.float32: 1, torch.bfloat16: 2}.get(dtype, 0))


@cache
def lanes() -> int:
    """Numbers of float32 in a register, as the kernels use it; there has to be a library."""
    library = load()
    return 1 if library is None else int(library.lanes_of_register())


@cache
def panel() -> int:
    """Columns of a weight that the kernels sum at a time."""
    library = load()
    return 1 if library is None else int(library.columns_of_panel())


def reason_against() -> str | None:
    """Why there can be no library here, or None."""
    if sys.platform != "linux":
        return f"not tried on {sys.platform}"
    return None if _compiler() else "no C++ compiler"


def describe() -> str:
    """Say in one line what runs between products on this machine's CPU, and why."""
    if load() is not None:
        return "C++ kernels"
    why = reason_against() or "the C++ kernels could not be compiled, or others may have written them"
    return f"plain PyTorch: {why}"


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")


def _built() -> Path:
    """Path of the library for these sources, this compiler and this processor."""
    folder = Path(__file__).parent
    sources = sorted(folder.glob("*.cpp"))
    compiler = str(_compiler())
    place = (
        cache_dir() / "native" / f"kernels-{_digest(compiler, [*sorted(folder.glob('*.h')), *sources])}.so"
    )
    if not place.exists():
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as work:
            made = Path(work) / place.name
            words = [compiler, *_FLAGS, *map(str, sources), "-o", str(made)]
            subprocess.run(words, check=True, capture_output=True, timeout=_LONGEST)
            made.chmod(0o755)
            os.replace(made, place)
    return place


def _own(place: Path) -> bool:
    """Say whether nobody else can have written it: what it holds is run."""
    found = place.stat()
    return found.st_uid in (0, os.getuid()) and not found.st_mode & 0o022


def _digest(compiler: str, files: list[Path]) -> str:
    digest = hashlib.sha256(f"{_FLAGS} {os.path.realpath(compiler)} {_processor()}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on: machines of different kinds may share a home."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
