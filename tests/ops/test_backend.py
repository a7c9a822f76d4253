"""Which backend runs where; Triton's when it fails, and its tests in a process of their own."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metaformer.errors import ConfigError
from metaformer.ops import backend, triton
from metaformer.ops.cycle import cycle_mix
from metaformer.ops.linear import linear
from metaformer.ops.mlp import mlp
from metaformer.ops.pool import pool_residual
from ops.numerics import DEVICE, TRITON, mode, random, triton_alone

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
from metaformer.ops.triton import cycle, linear, mlp, pool

def compile_only(kernel, grid, on, *arguments, **options):
    pointers = [on if argument is None else argument for argument in arguments]
    made = kernel.warmup(*pointers, grid=(grid,), **options)
    print(kernel.fn.__name__, made.metadata.shared)
    assert made.metadata.shared <= 99 * 1024, kernel

for name, module in list(sys.modules.items()):
    if name.startswith("metaformer.ops.triton.") and hasattr(module, "launch"):
        module.launch = compile_only

dtype = getattr(torch, sys.argv[1])
tensor = lambda *shape: torch.empty(shape, dtype=dtype)
for dim in (64, 320):
    x, v, w = tensor(64, 14, 14, dim), tensor(dim), tensor(dim, dim)
    w1, w2 = tensor(256, dim), tensor(dim, 256)
    m, share = torch.empty(64, 2), tensor(64, 3, dim)
    pool.pool_residual._init_fn(x, v, None, 3, 1e-5, 1.0)
    pool.pool_residual_backward._init_fn(x, x, v, None, m, 3, 1.0)
    parts = (x, w1, tensor(256), w2, v, v, v, v, None, None, None)
    mlp.mlp._init_fn(*parts, 1.0, 1e-5, "group_norm", "gelu")
    mlp.mlp_backward._init_fn(x, *parts, m, 1.0, 1e-5, "group_norm", "gelu")
    cycle.cycle_mix._init_fn(x, w, w, w, share, 3)
    cycle.cycle_mix_backward._init_fn(x, x, w, w, w, share, 3)
"""


def test_a_cpu_runs_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with mode("triton"):
        assert not triton.supports(torch.zeros(1, 2, 3, 3))


def test_the_interpreter_runs_where_triton_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in ("reference", "auto"):
        with mode(name):
            assert not triton.supports(torch.zeros(1, 2, 3, 3))
    with mode("reference"):
        assert triton.describe() == "plain PyTorch: METAFORMER_OPS asks for it"


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORMER_OPS", "refrence")
    with pytest.raises(ConfigError, match="did you mean reference"):
        triton.supports(torch.zeros(1, 2, 3, 3))
    with pytest.raises(ConfigError, match="METAFORMER_OPS"):
        triton.describe()


def test_one_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAFORMER_OPS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton.describe() == "plain PyTorch: no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert triton.describe() == "plain PyTorch: the Triton kernels need compute capability 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton.describe() == "plain PyTorch: Triton is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "not verified on 9.0" in triton.describe()
    with mode("triton"):
        assert triton.describe() == "Triton kernels"
    monkeypatch.setitem(triton.VERIFIED, (9, 0), "H200")
    assert triton.describe() == "Triton kernels"


def test_autocast_chooses_the_dtype_but_for_float64() -> None:
    x = torch.zeros(1)
    assert backend.working_dtype(x) == torch.float32
    with backend.without_autocast(x):
        assert backend.working_dtype(x) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backend.working_dtype(x) == torch.bfloat16
        assert backend.working_dtype(x.double()) == torch.float64
        with backend.without_autocast(x):
            assert backend.working_dtype(x) == torch.float32


def test_compilers_take_the_choice_as_a_constant() -> None:
    def choose(x: Tensor) -> Tensor:
        return x + 1 if triton.supports(x) else x - 1

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2)).tolist() == choose(torch.zeros(2)).tolist()


# In the interpreter, or on CUDA


def network(x: Tensor, w: Tensor, gain: Tensor) -> Tensor:
    """All operations, one after the other."""
    x, _ = pool_residual(x, gain)
    x = mlp(x, w, None, w.mT, None, norm="group_norm", gamma=gain, residual=x)
    x = linear(linear(x, w, act="relu"), w.mT, residual=x)
    square = w[: x.shape[-1]], None
    return cycle_mix(x, [square] * 3, gain.expand(x.shape[0], 3, -1), square, 3)


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    monkeypatch.setenv("METAFORMER_OPS", "triton")
    torch.manual_seed(0)
    return [(random(*shape).detach() / 2).requires_grad_() for shape in [(2, 5, 4, 8), (12, 8), (8,)]]


def gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    result = function(*tensors)
    return [result.detach(), *torch.autograd.grad(result.float().square().mean(), tensors)]


@triton_alone
def test_a_kernel_that_fails_falls_back_with_one_warning(
    backend: str, tensors: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaformer.ops.triton import cycle, linear, mlp, norm, pool

    with mode("reference"):
        wanted = gradients(network, tensors)
    gradients(network, tensors)  # registers the operations
    monkeypatch.setattr(triton, "_failed", set())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Triton Error [CUDA]: no kernel image")

    for module in (cycle, linear, mlp, norm, pool):
        monkeypatch.setattr(module, "launch", fail)
    with pytest.warns(UserWarning, match="plain PyTorch runs in its place") as caught:
        first = gradients(network, tensors)
    text = "".join(str(warning.message) for warning in caught)
    assert len(caught) == len(triton._failed) and all(f"operation {name} " in text for name in triton._failed)
    for found in (first, gradients(network, tensors)):  # silent the second time
        torch.testing.assert_close(found, wanted)


@triton_alone
def test_a_kernel_that_fails_in_the_backward_pass_falls_back(
    backend: str, tensors: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaformer.ops.triton import linear

    wanted = gradients(network, tensors)
    monkeypatch.setattr(triton, "_failed", set())
    names = ["linear_act_backward", "linear_residual_backward", "mlp_backward", "cycle_mix_backward"]
    names.append("pool_residual_backward")
    call = triton.call

    def refusing(name: str, reference: Callable[[], object], *arguments: object) -> object:
        return reference() if name in names else call(name, reference, *arguments)

    monkeypatch.setattr(triton, "call", refusing)
    assert linear.backend is triton
    torch.testing.assert_close(gradients(network, tensors), wanted, rtol=1e-4, atol=1e-5)


def test_a_mistake_of_the_caller_is_not_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: object) -> None:
        raise ValueError("shapes")

    monkeypatch.setattr(triton, "_failed", set())
    monkeypatch.setattr(torch.ops.metaformer, "any_operation", mistaken, raising=False)
    with pytest.raises(ValueError, match="shapes"):
        triton.call("any_operation", lambda: mistaken())
    assert not triton._failed


def test_memory_that_runs_out_is_not_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.ops.metaformer, "any_operation", full, raising=False)
    with pytest.raises(torch.OutOfMemoryError):
        triton.call("any_operation", lambda: 1)


@triton_alone
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(backend: str, tensors: list[Tensor], dynamic: bool) -> None:
    compiler = "inductor" if DEVICE == "cuda" else "aot_eager"
    compiled = torch.compile(network, backend=compiler, fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(
        gradients(compiled, tensors), gradients(network, tensors), rtol=1e-3, atol=1e-4
    )


@triton_alone
def test_autocast_chooses_the_dtype(backend: str, tensors: list[Tensor]) -> None:
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float16
    with torch.autocast(DEVICE, dtype=dtype):
        found = gradients(network, tensors)
    assert found[0].dtype == dtype
    assert [gradient.dtype for gradient in found[1:]] == [torch.float32] * 3
    for got, wanted in zip(found, gradients(network, tensors), strict=True):
        assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


@triton_alone
def test_export_keeps_the_operations(backend: str, tensors: list[Tensor]) -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor, gain: Tensor) -> Tensor:
            return network(x, w, gain)

    inputs = tuple(tensor.detach() for tensor in tensors)
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    program = torch.export.export(Network(), inputs, dynamic_shapes=(free, None, None))
    assert "metaformer.mlp" in program.graph_module.code
    larger = torch.randn(3, 7, 6, 8, device=inputs[0].device)
    torch.testing.assert_close(program.module()(larger, *inputs[1:]), network(larger, *inputs[1:]))


@triton_alone
@pytest.mark.gpu
def test_cuda_graphs(backend: str, tensors: list[Tensor]) -> None:
    """Nothing waits for the device or reads data."""
    inputs = [tensor.detach() for tensor in tensors]
    wanted = network(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = network(*inputs)
    inputs[0].copy_(torch.randn_like(inputs[0]))
    graph.replay()
    torch.testing.assert_close(result, network(*inputs))
    assert not torch.equal(result, wanted)


@triton_alone
@pytest.mark.gpu
def test_activations_beyond_two_billion_elements(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORMER_OPS", "triton")
    x = torch.randn(42, 1024, 800, 64, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(64, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16) / 8
    operations: list[Callable[[Tensor], Tensor]] = [
        lambda x: pool_residual(x, weight)[0],
        lambda x: mlp(x, w, None, w, None, norm="group_norm", residual=x),
        lambda x: cycle_mix(x, [(w, None)] * 3, weight.expand(len(x), 3, -1), (w, None), 3),
    ]
    for operation in operations:
        torch.testing.assert_close(operation(x)[-1:], operation(x[-1:]), rtol=2e-2, atol=2e-2)


# In processes of their own


@pytest.mark.skipif(TRITON, reason="they run beside this one")
@pytest.mark.parametrize(
    "chosen",
    [
        "triton and not low and not compiles_whole",
        pytest.param("triton", marks=pytest.mark.slow, id="all"),
    ],
    ids=["quick", "all"],
)
def test_kernels_in_the_interpreter(chosen: str) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(HERE)]
    command += ["-k", chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernels_compile_where_no_gpu_is(tmp_path: Path, dtype: str) -> None:
    """For compute capability 9.0, and within the shared memory that smaller cards have too."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", HOPPER, dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-8000:]
    assert "_weight_gradient_kernel" in done.stdout
