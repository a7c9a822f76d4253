"""Kernels against the float64 reference: on CUDA where there is one, else in Triton's interpreter.

Triton decides for its interpreter when it is imported, so `tests/ops/test_kernels.py` starts these tests in a
process of their own where there is no CUDA. They need neither Hypothesis nor a configuration file:
`python -m pytest -c /dev/null --rootdir . tests/ops/kernels` runs them on a bare machine.
"""

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]

# The interpreter multiplies no bfloat16
LOW = torch.bfloat16 if CUDA else torch.float16
BOUNDS = {torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns where it is left open


@pytest.fixture
def device() -> str:
    return "cuda" if CUDA else "cpu"


@pytest.fixture(params=[torch.float32, LOW], ids=["float32", "low"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def agrees(monkeypatch: pytest.MonkeyPatch, device: str) -> Callable[..., None]:
    """Compare an operation, and its gradients for all tensors, with its reference in float64.

    An error counts relative to the largest value, and may be twice what the reference makes in the same type.
    """

    def check(function: Callable[..., Tensor], tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        low = [_laid_out(tensor, device, dtype) for tensor in tensors]
        monkeypatch.setenv("METAFORMER_OPS", "reference")
        exact, grad = _run(function, [tensor.double() for tensor in low], None)
        plain, _ = _run(function, low, grad)
        monkeypatch.setenv("METAFORMER_OPS", "auto")
        fast, _ = _run(function, low, grad)
        for number, (wanted, usual, got) in enumerate(zip(exact, plain, fast, strict=True)):
            assert got.dtype == dtype and got.shape == wanted.shape, number
            size = wanted.abs().max().clamp_min(1e-9)
            error, usual_error = ((value.double() - wanted).abs().max() / size for value in (got, usual))
            assert error <= max(BOUNDS[dtype], 2 * float(usual_error)), (number, float(error))

    return check


def _laid_out(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """Move a tensor without closing its gaps."""
    moved = torch.empty_strided(tensor.shape, tensor.stride(), device=device, dtype=dtype)
    return moved.copy_(tensor)


def _run(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    result = function(*leaves)
    if grad is None:
        torch.manual_seed(1)
        grad = torch.randn(result.shape).to(result.device, result.dtype)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad.to(result.dtype))], grad
