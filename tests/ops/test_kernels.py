"""The tests in `kernels/` in a process of their own, where Triton interprets; and what its compiler makes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

HERE = Path(__file__).parent
HOPPER = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Hopper:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device=None: 0
    get_active_torch_device = lambda self: torch.device("cpu")

driver.set_active(Hopper())
from metaformer.ops.kernels import cycle_mix, norm_mlp, pool_residual

def compile_only(kernel, grid, on, *arguments, **options):
    made = kernel.warmup(*arguments, grid=(grid,), **options)
    print(kernel.fn.__name__, made.metadata.shared)
    assert made.metadata.shared <= 99 * 1024, kernel

for name, module in list(sys.modules.items()):
    if name.startswith("metaformer.ops.kernels.") and hasattr(module, "launch"):
        module.launch = compile_only

dtype = getattr(torch, sys.argv[1])
tensor = lambda *shape: torch.empty(shape, dtype=dtype)
for dim in (64, 320):
    x, v, w = tensor(64, dim, 14, 14), tensor(dim), tensor(dim, dim)
    w1, w2 = tensor(256, dim), tensor(dim, 256)
    m, share = torch.empty(64, 2), tensor(64, 3, dim)
    pool_residual.pool_residual._init_fn(x, v, None, 3, 1e-5, 1.0)
    pool_residual.pool_residual_backward._init_fn(x, x, v, None, m, 3, 1.0)
    parts = (x, w1, tensor(256), w2, v, v, v, v, None, None, None)
    norm_mlp.norm_mlp._init_fn(*parts, 1.0, 1e-5, "group_norm", "gelu")
    norm_mlp.norm_mlp_backward._init_fn(x, *parts, m, 1.0, 1e-5, "group_norm", "gelu")
    cycle_mix.cycle_mix._init_fn(x, w, w, w, share, 3)
    cycle_mix.cycle_mix_backward._init_fn(x, x, w, w, w, share, 3)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there: they run beside this one")
@pytest.mark.parametrize(
    "chosen", ["not low and not compiles_whole", pytest.param("", marks=pytest.mark.slow, id="all")]
)
def test_kernels_in_the_interpreter(chosen: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(HERE / "kernels")]
    command += ["-k", chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "METAFORMER_OPS": "auto", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernels_compile_where_no_gpu_is(tmp_path: Path, dtype: str) -> None:
    """For compute capability 9.0, and within the shared memory that smaller cards have too."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", HOPPER, dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-8000:]
    assert "_weight_gradient_kernel" in done.stdout
