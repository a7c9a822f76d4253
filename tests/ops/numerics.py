"""What tests of operations share: backends, tolerances, comparisons with float64.

Triton decides for its interpreter when it is imported, so where there is no CUDA `test_backend.py` starts the
tests whose backend is Triton in a process of their own. On a bare GPU machine with pytest and Hypothesis:
    PYTHONPATH=src:tests python -m pytest -c /dev/null --rootdir . --confcutdir tests/ops tests/ops -k triton
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from metaformer.ops import cpp

CUDA: Final = torch.cuda.is_available()
TRITON: Final = CUDA or os.environ.get("TRITON_INTERPRET") == "1"
DEVICE: Final = "cuda" if TRITON and CUDA else "cpu"
LOW: Final = torch.bfloat16 if CUDA else torch.float16
"""Low precision of Triton's tests: its interpreter multiplies no bfloat16."""
BOUNDS: Final = {torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES: Final = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Dtype of C++ kernels -> how far a result may be from float64's, relative to the largest number, or to 1."""
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns where it is left open

HAS_CPP: Final = cpp.load() is not None
HAS_LINEAR: Final = cpp.has_linear(torch.float32)
needs_cpp = pytest.mark.skipif(not HAS_CPP, reason=cpp.describe())
needs_linear = pytest.mark.skipif(not HAS_LINEAR, reason="no C++ compiler, or a processor without AVX2")
triton_alone = pytest.mark.parametrize("backend", ["triton"])
low_or_not = pytest.mark.parametrize("dtype", [torch.float32, LOW], ids=["float32", "low"])


def backends(*names: str) -> Any:
    """Parametrize by the backends of an operation; Triton runs where `conftest.py` leaves it in."""
    has_onednn = torch.backends.mkldnn.is_available()
    marks = {"cpp": needs_cpp, "onednn": pytest.mark.skipif(not has_onednn, reason="no oneDNN")}
    return pytest.mark.parametrize(
        "backend", [pytest.param(name, marks=marks.get(name, ())) for name in names]
    )


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Both are numbers, or are none, at the same places."""
    largest = wanted.nan_to_num().abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(
        found.double(), wanted.double(), rtol=0, atol=tolerance * max(1.0, largest), equal_nan=True
    )


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run kernels with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def mode(name: str) -> Iterator[None]:
    """Set METAFORMER_OPS; a backend that is no mode runs in `auto`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAFORMER_OPS", name if name in ("triton", "reference") else "auto")
        yield


def agrees(function: Callable[..., Tensor], tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Compare an operation by Triton, and its gradients for all tensors, with its reference in float64.

    An error counts relative to the largest value, and may be twice the reference's in the same dtype.
    """
    low = [_copied(tensor, dtype) for tensor in tensors]
    with mode("reference"):
        exact, grad = _with_gradients(function, [tensor.double() for tensor in low], None)
        plain, _ = _with_gradients(function, low, grad)
    with mode("triton"):
        fast, _ = _with_gradients(function, low, grad)
    for number, (wanted, usual, got) in enumerate(zip(exact, plain, fast, strict=True)):
        assert got.dtype == dtype and got.shape == wanted.shape, number
        size = wanted.abs().max().clamp_min(1e-9)
        error, usual_error = ((value.double() - wanted).abs().max() / size for value in (got, usual))
        assert error <= max(BOUNDS[dtype], 2 * float(usual_error)), (number, float(error))


def check_operation(name: str, function: Callable[..., Any], *arguments: Any) -> None:
    """What torch asks of the registered operation `name`, which a call of `function` registers."""
    with mode("triton"):
        function()
        torch.library.opcheck(getattr(torch.ops.metaformer, name).default, arguments)


def same_gradients(found: Tensor, wanted: Tensor, inputs: Sequence[Tensor]) -> None:
    """Two results and their gradients for the inputs are close."""
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        *(torch.autograd.grad(y.square().sum(), inputs) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def random(*shape: int) -> Tensor:
    """A leaf with gradient on Triton's device."""
    return torch.randn(shape, device=DEVICE, requires_grad=True)


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Move a tensor without closing its gaps."""
    moved = torch.empty_strided(tensor.shape, tensor.stride(), device=DEVICE, dtype=dtype)
    return moved.copy_(tensor)


def _with_gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    result = function(*leaves)
    if grad is None:
        torch.manual_seed(1)
        grad = torch.randn(result.shape).to(result.device, result.dtype)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(result.dtype))], grad
