import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaformer.ops.native import library

CHECK = """
import torch
from metaformer.ops.native import library
print(library.describe())
"""


def said(**environment: str) -> str:
    words = [sys.executable, "-c", CHECK]
    found = subprocess.run(
        words, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return found.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux")
def test_compiled_once_and_kept(tmp_path: Path) -> None:
    assert said(METAFORMER_HOME=str(tmp_path)) == "C++ kernels"
    (kept,) = (tmp_path / "native").iterdir()
    before = kept.stat().st_mtime_ns
    assert said(METAFORMER_HOME=str(tmp_path)) == "C++ kernels"
    assert kept.stat().st_mtime_ns == before
    kept.chmod(0o777)  # anybody may have written it since
    assert said(METAFORMER_HOME=str(tmp_path)).startswith("plain PyTorch: ")


def test_without_a_compiler_plain_pytorch_runs(tmp_path: Path) -> None:
    assert "no C++ compiler" in said(METAFORMER_HOME=str(tmp_path), PATH=str(tmp_path), CXX="")
    assert "could not be compiled" in said(METAFORMER_HOME=str(tmp_path), CXX="false")
    assert not list(tmp_path.glob("native/*.so"))


def test_every_kernel_has_each_type() -> None:
    found = library.load()
    assert isinstance(found, ctypes.CDLL)
    for kernel in library.SIGNATURES:
        for suffix in ("float32", "bfloat16"):
            assert getattr(found, f"{kernel}_{suffix}").restype is None


def test_what_it_runs_on() -> None:
    x = torch.randn(2, 3)
    assert library.usable(x) and library.usable(x.bfloat16())
    assert not library.usable(x.double()) and not library.usable(x.t()) and not library.usable(x[:0])
    assert not library.usable(x, x.bfloat16())
