import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops import cpp
from metaformer.ops import train_mlp as module
from metaformer.ops.cpp import kernels
from metaformer.ops.norm import sample_moments
from metaformer.ops.train_mlp import ACTS, cpp_backward, cpp_forward, reference, train_mlp, train_mlp_backward
from ops.numerics import DTYPES, backends, close, needs_linear, threads

NORMS = ("group_norm", "layer_norm", "none")
PLAIN = {"relu": F.relu, "squared_relu": lambda x: F.relu(x).square(), "gelu": F.gelu}
Options = tuple[str, float, str, bool]


def drawn(
    size: tuple[int, int, int, int], hidden: int, norm: str, bias: bool = True, dtype: Any = torch.float64
) -> list[Tensor | None]:
    """x, weights and the norm's constants, each of which is to have a gradient."""
    torch.manual_seed(0)
    dim, affine = size[1], norm != "none"
    sizes = [size, (hidden, dim), (hidden,) if bias else None, (dim, hidden), (dim,) if bias else None]
    sizes += [(dim,) if affine else None, (dim,) if affine and bias else None]
    return [None if each is None else torch.randn(each, dtype=dtype).requires_grad_() for each in sizes]


def compare(
    inputs: list[Any], options: Options, save: bool = False, scale: Tensor | None = None, **tolerance: float
) -> None:
    """Result and gradients with those of plain PyTorch."""
    found, _ = train_mlp(*inputs, *options, save, None, scale)
    wanted = reference(*inputs, *options, scale)
    torch.testing.assert_close(found, wanted, **tolerance)
    leaves = [tensor for tensor in (*inputs, scale) if tensor is not None]
    grad = torch.randn_like(wanted)
    for ours, theirs, leaf in zip(
        *(torch.autograd.grad(y, leaves, grad) for y in (found, wanted)), leaves, strict=True
    ):
        assert ours.shape == leaf.shape and ours.dtype == leaf.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(2, 9), st.integers(1, 7), st.integers(1, 7), st.integers(1, 11),
    st.sampled_from(NORMS), st.sampled_from(ACTS), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([1, 40]),
)  # fmt: skip
def test_value_and_gradients_in_float64(
    batch: int, dim: int, height: int, width: int, hidden: int, norm: str, act: str, bias: bool,
    residual: bool, scaled: bool, chunk: int,
) -> None:  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        inputs = drawn((batch, dim, height, width), hidden, norm, bias)
        scale = torch.randn(dim, dtype=torch.float64, requires_grad=True) if scaled else None
        compare(inputs, (norm, 1e-5, act, residual), scale=scale, rtol=1e-9, atol=1e-9)


@backends("onednn", "cpp")
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", NORMS)
def test_value_and_gradients_in_float32(
    backend: str, norm: str, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 24 * 16)
    sizes = [(6, 24, True)] if backend == "onednn" else [(16, 48, True), (64, 192, norm == "group_norm")]
    for dim, hidden, bias in sizes:
        inputs = drawn((2, dim, 5, 7), hidden, norm, bias, torch.float32)
        by_cpp = module.supports_cpp(torch.empty(hidden, dim))
        for save in (False, True):
            with kernels.record_calls() as calls:
                atol = 5e-2 if act == "squared_relu" else 1e-3  # of numbers in the thousands
                compare(inputs, (norm, 1e-5, act, True), save, rtol=1e-4, atol=atol)
            assert any("mlp_backward" in str(function.__name__) for function, _ in calls) == by_cpp


def test_gaps_and_layouts() -> None:
    x, *rest = drawn((2, 6, 5, 8), 12, "group_norm")
    assert x is not None
    for each in (x[..., ::2], x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()):
        compare([each, *rest], ("group_norm", 1e-5, "gelu", True))
        y, _ = train_mlp(each, *rest, "group_norm", 1e-5, "gelu", True, False)  # type: ignore[call-overload]
        assert y.is_contiguous(memory_format=torch.channels_last) and not y._is_view()


def test_bfloat16_sums_weights_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In many chunks as in one: sums of bfloat16 numbers would lose the small ones."""
    monkeypatch.setattr(module, "CHUNK", 8)
    inputs: list[Any] = drawn((4, 4, 16, 16), 8, "layer_norm", dtype=torch.bfloat16)
    exact: list[Any] = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    options: Options = ("layer_norm", 1e-5, "gelu", False)
    y, _ = train_mlp(*inputs, *options, True)
    ours = torch.autograd.grad(y.sum(), [t for t in inputs if t is not None])
    theirs = torch.autograd.grad(reference(*exact, *options).sum(), [t for t in exact if t is not None])
    for found, wanted in zip(ours[1:5], theirs[1:5], strict=True):
        assert (found - wanted).abs().max() <= 0.02 * wanted.abs().max()


@pytest.mark.parametrize("low", [False, True])
def test_gradients_of_gradients(low: bool) -> None:
    inputs = [tensor for tensor in drawn((1, 2, 2, 3), 3, "group_norm") if tensor is not None]
    options = ("group_norm", 1e-5, "gelu", True, False)
    assert torch.autograd.gradgradcheck(lambda *t: train_mlp(*t, *options)[0], inputs)
    if low:  # x wider than the weights, as under autocast
        x, *weights = (tensor.detach().float().requires_grad_() for tensor in inputs)
        weights[:4] = [tensor.detach().bfloat16().requires_grad_() for tensor in weights[:4]]
        y, _ = train_mlp(x, *weights, "group_norm", 1e-5, "gelu", False, False)
        (grad,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        assert torch.autograd.grad(grad.sum(), weights[0])[0].isfinite().all()


def test_hidden_activations_are_not_saved() -> None:
    inputs, saved = drawn((2, 6, 5, 5), 24, "group_norm"), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        train_mlp(*inputs, "group_norm", 1e-5, "gelu", True, False)  # type: ignore[arg-type]
    assert sum(saved) == sum(tensor.numel() for tensor in inputs if tensor is not None)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own check reads it
@pytest.mark.parametrize("norm", NORMS)
def test_torch_knows_the_operations(norm: str) -> None:
    options = (norm, 1e-5, "gelu", norm != "none")
    inputs = drawn((2, 4, 3, 3), 8, norm, norm == "group_norm", torch.float32)
    torch.library.opcheck(train_mlp, (*inputs, *options, False))
    scale = torch.randn(4, requires_grad=True)
    torch.library.opcheck(train_mlp, (*inputs, *options, False, None, scale, torch.float32))
    x, *rest = (None if tensor is None else tensor.detach() for tensor in inputs)
    assert x is not None
    tests = ("test_schema", "test_faketensor")
    arguments = x, x.new_empty(0, 8), x, *rest, *options, None, scale.detach()
    torch.library.opcheck(train_mlp_backward, arguments, test_utils=tests)


# C++


def rows_drawn(rows: int, dim: int, hidden: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Tokens, the gradient of the result, w1, b1 and w2."""
    torch.manual_seed(0)
    shapes = (rows, dim), (rows, dim), (hidden, dim), (hidden,), (dim, hidden)
    n, grad_out, w1, b1, w2 = (torch.randn(shape) for shape in shapes)
    return [tensor.to(dtype) for tensor in (n, grad_out, w1 / dim**0.5, b1, w2)]


@needs_linear
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 5, 6, 7, 13, 50, 201]), st.sampled_from([1, 2, 4, 5]),
    st.sampled_from([1, 2, 5, 9, 12]), st.sampled_from(ACTS), st.integers(1, 6), st.booleans(),
    st.booleans(), st.sampled_from(list(DTYPES)),
)  # fmt: skip
def test_both_passes_agree_with_float64(
    rows: int, dim: int, hidden: int, act: str, count: int, save: bool, scaled: bool, dtype: torch.dtype
) -> None:
    n, grad_out, w1, b1, w2 = rows_drawn(rows, 16 * dim, 16 * hidden, dtype)
    b2, scale = torch.randn(16 * dim).to(dtype), torch.randn(16 * dim)
    exact = [tensor.double().requires_grad_() for tensor in (n, w1, b1, w2, b2, scale)]
    weight, bias, factor = exact[3:] if scaled else (*exact[3:5], torch.ones(16 * dim).double())
    exact = exact if scaled else exact[:5]
    hidden_exact = PLAIN[act](F.linear(*exact[:3]))
    wanted = F.linear(hidden_exact, factor[:, None] * weight, bias)
    grads = torch.autograd.grad(wanted, exact, grad_out.double())
    out, saved = torch.empty_like(n), torch.empty(rows, 16 * hidden, dtype=dtype) if save else None
    with threads(count):
        factors = {"scale": scale} if scaled else {}
        cpp_forward(n, w1, b1, w2, b2 / scale if scaled else b2, act, None, out, saved, **factors)
        found = cpp_backward(n, grad_out, w1, b1, w2, act, saved, **factors)
    close(out, wanted.detach(), DTYPES[dtype])
    for ours, theirs in zip(found, grads, strict=True):
        assert ours.dtype == torch.float32
        close(ours, theirs, 2 * DTYPES[dtype])


@needs_linear
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1, 32, 1, 1), (3, 16, 5, 7), (2, 48, 9, 4)])
def test_group_norm_and_scale_within_the_kernels(
    size: tuple[int, int, int, int], bias: bool, dtype: torch.dtype
) -> None:
    inputs: list[Any] = drawn(size, 64, "group_norm", bias, torch.float32)
    inputs[0] = (inputs[0] * 2 + 5).detach().to(dtype).requires_grad_()
    inputs.append(torch.randn(size[1], requires_grad=True))
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    options: Options = ("group_norm", 1e-3, "gelu", True)
    tokens = inputs[0].detach().permute(0, 2, 3, 1).contiguous()
    wanted, grad_out = reference(*exact[:7], *options, exact[7]), torch.randn(size).to(dtype)
    grads = torch.autograd.grad(wanted, [t for t in exact if t is not None], grad_out.double())
    results = []
    for moments in (None, sample_moments(tokens, 1e-3)):
        with kernels.record_calls() as calls:
            y, _ = train_mlp(*inputs[:7], *options, True, moments, inputs[7], dtype)
            found = torch.autograd.grad(y, [t for t in inputs if t is not None], grad_out)
        results.append([y, *found])
        names = [str(function.__name__).rpartition("_")[0] for function, _ in calls]
        by_cpp = cpp.has_linear(dtype)
        assert names.count("sample_moments") == (2 if by_cpp and moments is None else 0)
        assert ("group_norm_backward" in names) == by_cpp
    assert all(map(torch.equal, *results))
    for ours, theirs in zip(results[0], (wanted.detach(), *grads), strict=True):
        close(ours.detach(), theirs, 3 * DTYPES[dtype])


@needs_linear
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_saved_activations_change_no_bit(dtype: torch.dtype) -> None:
    n, grad_out, w1, b1, w2 = rows_drawn(77, 64, 192, dtype)
    out, pre_act = torch.empty_like(n), torch.empty(77, 192, dtype=dtype)
    cpp_forward(n, w1, b1, w2, None, "gelu", None, out, pre_act)
    saved = cpp_backward(n, grad_out, w1, b1, w2, "gelu", pre_act)
    for ours, theirs in zip(cpp_backward(n, grad_out, w1, b1, w2, "gelu"), saved, strict=True):
        assert torch.equal(ours, theirs)


@needs_linear
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_same_twice_with_as_many_threads(count: int) -> None:
    n, grad_out, w1, b1, w2 = rows_drawn(500, 64, 256)
    with threads(count):
        first, second = (cpp_backward(n, grad_out, w1, b1, w2, "gelu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_linear
def test_fewer_threads_than_were_asked_for() -> None:
    """The same bits: what is summed with what depends on the number that PyTorch has, not on who comes."""
    code = """if True:
        import torch
        from metaformer.ops.train_mlp import cpp_backward
        torch.manual_seed(0)
        torch.set_num_threads(4)
        n, grad_out, w1, w2 = (torch.randn(size) for size in ((90, 64), (90, 64), (192, 64), (64, 192)))
        print([part.double().sum().item() for part in cpp_backward(n, grad_out, w1, None, w2, "gelu")])
    """
    outputs = set()
    for limit in ({}, {"OMP_THREAD_LIMIT": "1"}, {"OMP_THREAD_LIMIT": "3"}):
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env={**os.environ, **limit}, capture_output=True, text=True, check=True
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


@needs_linear
def test_supported_weights() -> None:
    weight = torch.randn(32, 16)
    assert module.supports_cpp(weight)
    assert module.supports_cpp(weight.bfloat16()) == cpp.has_linear(torch.bfloat16)
    wrong = (weight.double(), weight.half(), weight[:30], weight[:, :12])
    assert not any(map(module.supports_cpp, wrong))
