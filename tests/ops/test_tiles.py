"""AMX tiles of the C++ kernels: the tests of products, in processes of their own where tiles are emulated.

AddressSanitizer checks each address there. Where the processor has tiles the tests run on them as they are.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metaformer.ops import cpp
from ops.test_cpp import compiled, described

HERE = Path(__file__).parent
FLAGS = f'-O1 -fsanitize=address -include "{HERE / "emulated_tiles.h"}"'
FILES = ("linear", "mlp", "cycle", "attention", "conv", "train_mlp")
PRODUCTS = (
    "packed or microkernels or cache or nan_ or earlier_call or number_of_threads or everywhere"
    " or many_tokens or one_token or (agrees_with_float64 and cpp)"
    " or test_conv or both_passes or change_no_bit"
)
pytestmark = [
    compiled,
    pytest.mark.slow,
    pytest.mark.skipif(cpp.lanes() != 16, reason="tiles come with AVX-512"),
]


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which kernels multiply bfloat16 in emulated tiles."""
    folder = tmp_path_factory.mktemp("emulation")
    compiler = folder / "c++"
    compiler.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec "{cpp._compiler()}" "$@" {FLAGS}\n')
    compiler.chmod(0o755)
    find = [str(compiler), "-print-file-name=libasan.so"]
    library = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("the compiler has no AddressSanitizer")
    return {
        "METAFORMER_HOME": str(folder), "CXX": str(compiler), "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@pytest.mark.parametrize("environment", [{}, {"REFUSE_TILES": "1"}], ids=["tiles", "refused"])
def test_products_agree_with_float64(environment: dict[str, str], emulation: dict[str, str]) -> None:
    files = [str(HERE / f"test_{name}.py") for name in FILES]
    options = ["-q", "-s", "-n0", "-p", "no:cacheprovider", "-k", PRODUCTS]
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = {**os.environ, **emulation, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert "skipped" not in done.stdout


def test_the_description_names_what_runs(emulation: dict[str, str]) -> None:
    assert described(**emulation) == "C++ kernels (AVX-512, bfloat16 by AMX tiles)"
    assert "AMX" not in described(**emulation, REFUSE_TILES="1")
