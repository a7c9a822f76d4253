import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from metaformer.ops.layer_norm import layer_norm
from metaformer.ops.native import library

CHECK = """
import torch
from metaformer.ops.native import library
print(library.describe())
"""


# where there is a compiler, that nothing was compiled is a failure
compiled = pytest.mark.skipif(library.reason_against() is not None, reason=str(library.reason_against()))


def said(**environment: str) -> str:
    words = [sys.executable, "-c", CHECK]
    found = subprocess.run(
        words, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return found.stdout.strip()


@compiled
def test_compiled_once_and_kept(tmp_path: Path) -> None:
    assert said(METAFORMER_HOME=str(tmp_path)) == "C++ kernels"
    (kept,) = (tmp_path / "native").iterdir()
    before = kept.stat().st_mtime_ns
    assert said(METAFORMER_HOME=str(tmp_path)) == "C++ kernels"
    assert kept.stat().st_mtime_ns == before
    kept.chmod(0o777)  # anybody may have written it since
    assert said(METAFORMER_HOME=str(tmp_path)).startswith("plain PyTorch: ")


@compiled
def test_without_a_compiler_plain_pytorch_runs(tmp_path: Path) -> None:
    assert "no C++ compiler" in said(METAFORMER_HOME=str(tmp_path), PATH=str(tmp_path), CXX="")
    assert "could not be compiled" in said(METAFORMER_HOME=str(tmp_path), CXX="false")
    assert not list(tmp_path.glob("native/*.so"))


@compiled
def test_every_kernel_has_each_type() -> None:
    found = library.load()
    assert isinstance(found, ctypes.CDLL)
    for kernel in library.SIGNATURES:
        for suffix in ("float32", "bfloat16"):
            assert getattr(found, f"{kernel}_{suffix}").restype is None


@compiled
def test_registers_and_panels_are_whole() -> None:
    assert library.lanes() in (8, 16) and library.panel() % library.lanes() == 0
    assert library.panel() > library.lanes()


@compiled
def test_products_only_of_types_that_oneDNN_does_not_beat() -> None:
    found = library.load()
    assert found is not None
    assert library.multiplies(torch.float32) == bool(found.products() & 1)
    assert library.multiplies(torch.bfloat16) == bool(found.products() & 2)
    assert not library.multiplies(torch.float64) and not library.multiplies(torch.float16)


def test_without_a_library_nothing_is_multiplied_and_a_register_holds_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    assert not library.multiplies.__wrapped__(torch.float32)
    assert library.lanes.__wrapped__() == library.panel.__wrapped__() == 1
    assert not library.usable(torch.randn(2, 3))


@compiled
def test_noted_calls_can_be_made_again() -> None:
    x = torch.randn(5, 3)
    with library.noted() as calls:
        found = layer_norm(x, 1e-5)
    ((function, arguments),) = calls
    assert arguments[0] is x and arguments[3] is found
    wanted, words = (
        found.clone(),
        [word.data_ptr() if isinstance(word, torch.Tensor) else word for word in arguments],
    )
    found.zero_()
    function(*words, 1)
    assert torch.equal(found, wanted)


@compiled
def test_only_calls_of_this_thread_are_noted_and_only_within() -> None:
    x = torch.randn(5, 3)
    with library.noted() as calls:
        other = threading.Thread(target=layer_norm, args=(x, 1e-5))
        other.start()
        other.join()
        assert not calls
    layer_norm(x, 1e-5)
    assert not calls
    with pytest.raises(ZeroDivisionError), library.noted() as calls:
        1 / 0  # noqa: B018
    layer_norm(x, 1e-5)
    assert not calls


@compiled
def test_what_it_runs_on() -> None:
    x = torch.randn(2, 3)
    assert library.usable(x) and library.usable(x.bfloat16())
    assert not library.usable(x.double()) and not library.usable(x.t()) and not library.usable(x[:0])
    assert not library.usable(x, x.bfloat16())
