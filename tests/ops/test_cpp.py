"""The C++ backend: compilation, signatures, checked calls."""

import ctypes
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.errors import ConfigError
from metaformer.ops import cpp, onednn
from metaformer.ops.cpp import kernels
from metaformer.ops.norm import layer_norm
from warm import python

CHECK = "from metaformer.ops import cpp; print(cpp.describe())"
FORWARD = (
    "import torch; from metaformer import create_model; from metaformer.ops import cpp\n"
    "create_model('poolformer_s12', num_classes=2)(torch.zeros(1, 3, 32, 32)).sum().backward()\n"
    "print(cpp.describe())"
)
# where there is a compiler, that nothing was compiled is a failure
compiled = pytest.mark.skipif(cpp.reason_against() is not None, reason=str(cpp.reason_against()))


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*python(), "-c", script]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=200)


def described(**environment: str) -> str:
    return run(CHECK, **environment).stdout.strip()


@compiled
def test_compiled_once_and_kept(quick_compiler: Path, tmp_path: Path) -> None:
    where = {"METAFORMER_HOME": str(tmp_path), "CXX": str(quick_compiler)}
    assert described(**where) == f"C++ kernels ({cpp.instructions()})"
    (library,) = (tmp_path / "cpp").glob("*.so")
    before = library.stat().st_mtime_ns
    assert described(**where) == f"C++ kernels ({cpp.instructions()})"
    assert library.stat().st_mtime_ns == before
    library.chmod(0o777)  # anybody may have written it since
    assert described(**where).startswith("plain PyTorch: ")


def zero_half(library: Path) -> None:
    """What a power cut may leave of a file whose size was on the disk before its content."""
    content = library.read_bytes()
    library.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def replace_by_another(library: Path) -> None:
    """A valid library that holds none of the kernels, beside which an honest hash lies."""
    other = importlib.import_module("_ctypes").__file__
    assert other is not None
    library.write_bytes(Path(other).read_bytes())
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    library.with_name(f"{library.name}.sha256").write_text(f"{digest}\n")


def replace_by_pipe(library: Path) -> None:
    library.unlink()
    os.mkfifo(library)


def replace_hash_by_pipe(library: Path) -> None:
    replace_by_pipe(library.with_name(f"{library.name}.sha256"))


def replace_by_device(library: Path) -> None:
    library.unlink()
    library.symlink_to("/dev/zero")


def remove_hash(library: Path) -> None:
    """A process that was killed after it wrote the library."""
    library.with_name(f"{library.name}.sha256").unlink()


COMPILER = """#!/bin/sh
for output; do :; done
all="$*"
kept="$0-$(echo "${{all%"$output"}}" | cksum | tr -d ' ')"
if [ ! -f "$kept" ]; then
    "{compiler}" "$@" -O0 || exit
    cp "$output" "$kept"
fi
cp "$kept" "$output"
"""


@pytest.fixture(scope="module")
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiler without optimization, for kernels that are loaded and hardly run.

    What it has compiled before, with the same arguments but for the output's name, it takes from its folder.
    """
    file = tmp_path_factory.mktemp("compiler") / "c++"
    file.write_text(COMPILER.format(compiler=cpp._compiler()))
    file.chmod(0o755)
    return file


@pytest.fixture(scope="module")
def intact(quick_compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory with the library in it."""
    home = tmp_path_factory.mktemp("home")
    described(METAFORMER_HOME=str(home), CXX=str(quick_compiler))
    return home


@pytest.fixture
def surroundings(quick_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the temporary files of a test."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("CXX", str(quick_compiler))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def load_anew(home: str | Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL | None:
    """What a new process would load."""
    monkeypatch.setenv("METAFORMER_HOME", str(home))
    return cpp.load.__wrapped__()


@compiled
@pytest.mark.parametrize(
    "damage",
    [zero_half, replace_by_another, replace_by_pipe, replace_hash_by_pipe, replace_by_device, remove_hash],
)
def test_a_damaged_library_is_compiled_anew(
    damage: Callable[[Path], None],
    intact: Path,
    surroundings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(intact, tmp_path / "home")
    (library,) = (tmp_path / "home" / "cpp").glob("*.so")
    content = library.read_bytes()
    damage(library)
    found = load_anew(tmp_path / "home", monkeypatch)
    assert found is not None and found.simd_lanes() in (8, 16) and not caplog.messages
    assert library.is_file() and not library.is_symlink() and library.read_bytes() == content
    assert library.with_name(f"{library.name}.sha256").is_file()


@compiled
@pytest.mark.parametrize("kind", ["no home", "a file", "a folder in place of the library"])
def test_without_a_cache_directory_a_private_folder_serves(
    kind: str,
    intact: Path,
    surroundings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (library,) = (intact / "cpp").glob("*.so")
    (tmp_path / "file").write_text("")
    (tmp_path / "home" / "cpp" / library.name).mkdir(parents=True)
    homes = {"no home": "~no-user-of-this-name/cache", "a file": str(tmp_path / "file")}
    assert load_anew(homes.get(kind, str(tmp_path / "home")), monkeypatch) is not None
    (line,) = caplog.messages
    assert line.startswith(f"C++ kernels are compiled to {surroundings}")
    (folder,) = surroundings.glob("metaformer-cpp-*")
    assert folder.stat().st_mode & 0o777 == 0o700 and len(list(folder.glob("*.so*"))) == 2


@compiled
def test_without_a_private_folder_plain_pytorch_runs(surroundings: Path) -> None:
    folder = surroundings / f"metaformer-cpp-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)  # anybody may have made it
    done = run(FORWARD, METAFORMER_HOME="~no-user-of-this-name/cache", TMPDIR=str(surroundings))
    assert done.stdout.startswith("plain PyTorch: ") and not list(folder.iterdir())
    (line,) = done.stderr.splitlines()
    assert "no such home directory; set METAFORMER_HOME" in line and "others may write in it" in line


@compiled
def test_without_a_compiler_plain_pytorch_runs(tmp_path: Path) -> None:
    assert "no C++ compiler" in described(METAFORMER_HOME=str(tmp_path), PATH=str(tmp_path), CXX="")
    assert "could not be compiled" in described(METAFORMER_HOME=str(tmp_path), CXX="false")
    assert not list(tmp_path.glob("cpp/*.so"))


@compiled
@pytest.mark.skipif("avx2" not in cpp._processor().split(), reason="no AVX2")
def test_instructions_by_environment(quick_compiler: Path, tmp_path: Path) -> None:
    script = f"{CHECK}; print(cpp.lanes(), cpp.has_linear(torch.float32), cpp.has_linear(torch.bfloat16))"
    where = {"METAFORMER_HOME": str(tmp_path), "CXX": str(quick_compiler)}
    found = run(f"import torch; {script}", METAFORMER_CPP_ARCH="x86-64-v3", **where).stdout.splitlines()
    assert found == ["C++ kernels (AVX2)", "8 True False"]
    assert described(METAFORMER_CPP_ARCH="native", **where) == cpp.describe()
    assert len(list(tmp_path.glob("cpp/*.so"))) == 2, "a library each"


def test_instructions_that_the_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORMER_CPP_ARCH", "x86-64-v4")
    monkeypatch.setattr(cpp, "_processor", lambda: "flags : fpu avx2 avx512f\nmodel name : Abacus")
    assert "x86-64-v4, and the processor lacks avx512bw" in str(cpp.reason_against())
    assert cpp.load.__wrapped__() is None


def test_unknown_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORMER_CPP_ARCH", "x86-64-v5")
    with pytest.raises(ConfigError, match=r"METAFORMER_CPP_ARCH 'x86-64-v5'"):
        cpp.load.__wrapped__()


def declared() -> dict[str, list[tuple[str, str]]]:
    """Kernel -> C types and names of its parameters, in the C++ sources, but for the number of threads."""
    source = "".join(path.read_text() for path in Path(cpp.__file__).parent.glob("*.cpp"))
    found = {}
    for name, parameters in re.findall(r'extern "C" void (\w+?)(?:_##suffix|_float32)\(([^)]*)\)', source):
        each = [" ".join(part.replace("\\", " ").split()) for part in parameters.split(",")]
        assert each.pop() == "int threads"
        found[name] = [(c_type, word) for c_type, _, word in (part.rpartition(" ") for part in each)]
    return found


def test_signatures_are_those_of_the_sources() -> None:
    sources = declared()
    assert set(sources) == set(kernels.SIGNATURES)
    for kernel, signature in kernels.SIGNATURES.items():
        assert sources[kernel] == [(c_type, name) for name, (c_type, _) in signature.items()]
        c_types = [c_type for c_type, _ in signature.values()]
        assert c_types == sorted(c_types, key=lambda c_type: not c_type.endswith("*")), "tensors come first"


@compiled
def test_every_kernel_has_its_dtypes() -> None:
    library = cpp.load()
    for kernel in kernels.SIGNATURES:
        assert all(hasattr(library, f"{kernel}_{suffix}") for suffix in cpp.SUFFIXES.values())


@compiled
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bias": torch.zeros(3, dtype=torch.bfloat16)}, "bias must be of torch.float32"),
        ({"out": torch.zeros(5, 3, dtype=torch.float64)}, "out must be of torch.float32"),
        ({"out": None}, "out must be of torch.float32, got None"),
        ({"x": torch.zeros(5, 3, dtype=torch.float64), "out": torch.zeros(5, 3).double()}, "no kernel"),
    ],
)
def test_wrong_and_missing_tensors_do_not_reach_cpp(changes: dict[str, object], match: str) -> None:
    x = torch.randn(5, 3)
    arguments = {"x": x, "weight": None, "bias": None, "out": torch.empty_like(x), "tokens": 5, "channels": 3}
    with pytest.raises(TypeError, match=match):
        kernels.layer_norm(**{**arguments, **changes}, eps=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", kernels.SIGNATURES)
def test_arguments_go_by_name(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = kernels.SIGNATURES[kernel]
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(kernels, "_call", lambda *arguments: calls.append(arguments))
    getattr(kernels, kernel)(**{name: name for name in reversed(signature)})
    pointers = [name for name, (c_type, _) in signature.items() if c_type.endswith("*")]
    numbers = [name for name in signature if name not in pointers]
    assert calls == [(kernel, tuple(pointers), tuple(numbers))]
    with pytest.raises(TypeError):
        getattr(kernels, kernel)(*signature)


@compiled
def test_no_kernels_for_other_dtypes() -> None:
    weight = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match="no kernel for"):
        kernels.pack_linear(packed=weight, weight=weight.float(), scale=None, out_features=2, in_features=2)


@compiled
def test_registers_and_panels_are_whole() -> None:
    assert cpp.lanes() in (8, 16) and cpp.panel() % cpp.lanes() == 0
    assert cpp.panel() > cpp.lanes()


@compiled
def test_linear_dtypes_are_those_of_the_instructions() -> None:
    library = cpp.load()
    assert library is not None
    assert cpp.has_linear(torch.bfloat16) == ("bfloat16" in cpp.instructions())
    assert cpp.has_linear(torch.float32) == bool(library.linear_dtypes() & 1)
    assert cpp.has_linear(torch.bfloat16) == bool(library.linear_dtypes() & 2)
    assert not cpp.has_linear(torch.float64) and not cpp.has_linear(torch.float16)


def test_without_a_library_nothing_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "load", lambda: None)
    assert not cpp.has_linear.__wrapped__(torch.float32)
    assert cpp.lanes.__wrapped__() == cpp.panel.__wrapped__() == 1
    assert cpp.instructions.__wrapped__() == ""
    assert not cpp.supports(torch.randn(2, 3))


@compiled
def test_supported_tensors() -> None:
    x = torch.randn(2, 3)
    assert cpp.supports(x) and cpp.supports(x.bfloat16()) == onednn.has_dtype(torch.bfloat16)
    assert not cpp.supports(x.double()) and not cpp.supports(x.t()) and not cpp.supports(x[:0])
    assert not cpp.supports(x, x.bfloat16())


@compiled
def test_recorded_calls_can_be_made_again() -> None:
    x = torch.randn(5, 3)
    with kernels.record_calls() as calls:
        found = layer_norm(x, 1e-5)
    ((function, arguments),) = calls
    assert arguments[0] is x and arguments[3] is found
    wanted = found.clone()
    found.zero_()
    function(*(word.data_ptr() if isinstance(word, torch.Tensor) else word for word in arguments), 1)
    assert torch.equal(found, wanted)


@compiled
def test_calls_of_this_thread_are_recorded_within_the_context() -> None:
    x = torch.randn(5, 3)
    with kernels.record_calls() as calls:
        other = threading.Thread(target=layer_norm, args=(x, 1e-5))
        other.start()
        other.join()
        assert not calls
    layer_norm(x, 1e-5)
    assert not calls
    with pytest.raises(ZeroDivisionError), kernels.record_calls() as calls:
        1 / 0  # noqa: B018
    layer_norm(x, 1e-5)
    assert not calls
    with kernels.record_calls() as outer, kernels.record_calls() as inner:
        layer_norm(x, 1e-5)
    assert len(outer) == len(inner) == 1
