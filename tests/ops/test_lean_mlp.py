from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops import lean_mlp as module
from metaformer.ops.lean_mlp import ACTS, lean_mlp, lean_mlp_backward, plain
from metaformer.ops.native import library

NORMS = ("group_norm", "layer_norm", "none")
How = tuple[str, float, str, bool]


def drawn(
    size: tuple[int, int, int, int], hidden: int, norm: str, bias: bool = True, dtype: Any = torch.float64
) -> list[Tensor | None]:
    """Map, weights and the norm's constants, each of which is to have a gradient."""
    torch.manual_seed(0)
    dim, affine = size[1], norm != "none"
    sizes = [size, (hidden, dim), (hidden,) if bias else None, (dim, hidden), (dim,) if bias else None]
    sizes += [(dim,) if affine else None, (dim,) if affine and bias else None]
    return [None if each is None else torch.randn(each, dtype=dtype).requires_grad_() for each in sizes]


def compared(inputs: list[Tensor | None], how: How, keep: bool = False, **tolerance: float) -> None:
    (found, _), wanted = lean_mlp(*inputs, *how, keep), plain(*inputs, *how)  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, **tolerance)
    there = [tensor for tensor in inputs if tensor is not None]
    grad = torch.randn_like(wanted)
    for ours, theirs, of in zip(
        torch.autograd.grad(found, there, grad), torch.autograd.grad(wanted, there, grad), there, strict=True
    ):
        assert ours.shape == of.shape and ours.dtype == of.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(2, 9), st.integers(1, 7), st.integers(1, 7), st.integers(1, 11),
    st.sampled_from(NORMS), st.sampled_from(ACTS), st.booleans(), st.booleans(), st.sampled_from([1, 40]),
)  # fmt: skip
def test_value_and_gradients_are_those_of_plain_pytorch(
    batch: int, dim: int, height: int, width: int, hidden: int, norm: str, act: str, bias: bool, past: bool,
    at_once: int,
) -> None:  # fmt: skip
    """Whatever the number of tokens that are worked on at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", at_once)
        size = (batch, dim, height, width)
        compared(drawn(size, hidden, norm, bias), (norm, 1e-5, act, past), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(
    not library.multiplies(torch.float32), reason="the C++ products do not run on this machine"
)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", NORMS)
def test_by_kernels_in_float32(norm: str, act: str, keep: bool) -> None:
    for dim, hidden, bias in ((16, 48, True), (64, 192, True), (48, 64, norm == "group_norm")):
        inputs = drawn((2, dim, 5, 7), hidden, norm, bias, torch.float32)
        with library.noted() as calls:
            atol = 1e-2 if act == "squared_relu" else 1e-3  # of numbers in the thousands
            compared(inputs, (norm, 1e-5, act, True), keep, rtol=1e-4, atol=atol)
        assert any("mlp_backward" in str(function.__name__) for function, _ in calls)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", NORMS)
def test_by_onednn_in_float32(norm: str, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 24 * 16)
    inputs = drawn((2, 6, 5, 7), 24, norm, dtype=torch.float32)
    compared(inputs, (norm, 1e-5, act, True), rtol=1e-4, atol=2e-4)


def test_gaps_and_layouts() -> None:
    inputs = drawn((2, 6, 5, 8), 12, "group_norm")
    every = inputs[0]
    assert every is not None
    for x in (every[..., ::2], every.detach().contiguous(memory_format=torch.channels_last).requires_grad_()):
        compared([x, *inputs[1:]], ("group_norm", 1e-5, "gelu", True))
        y, _ = lean_mlp(x, *inputs[1:], "group_norm", 1e-5, "gelu", True, False)  # type: ignore[call-overload]
        assert y.is_contiguous(memory_format=torch.channels_last) and not y._is_view()


def test_bfloat16_sums_weights_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In many parts as in one: sums of bfloat16 numbers would lose the small ones."""
    monkeypatch.setattr(module, "AT_ONCE", 8)
    inputs = drawn((4, 4, 16, 16), 8, "layer_norm", dtype=torch.bfloat16)
    exact = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in inputs]
    how = ("layer_norm", 1e-5, "gelu", False)
    y, _ = lean_mlp(*inputs, *how, True)  # type: ignore[arg-type]
    ours = torch.autograd.grad(y.sum(), [t for t in inputs if t is not None])
    theirs = torch.autograd.grad(plain(*exact, *how).sum(), [t for t in exact if t is not None])  # type: ignore[arg-type]
    for found, wanted in zip(ours[1:5], theirs[1:5], strict=True):
        assert (found - wanted).abs().max() <= 0.02 * wanted.abs().max()


def test_gradients_of_gradients() -> None:
    inputs = [tensor for tensor in drawn((1, 2, 2, 3), 3, "group_norm") if tensor is not None]
    how = ("group_norm", 1e-5, "gelu", True, False)
    assert torch.autograd.gradgradcheck(lambda *t: lean_mlp(*t, *how)[0], inputs)


def test_only_the_narrow_map_is_kept() -> None:
    inputs, kept = drawn((2, 6, 5, 5), 24, "group_norm"), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lean_mlp(*inputs, "group_norm", 1e-5, "gelu", True, False)  # type: ignore[arg-type]
    assert sum(kept) == sum(tensor.numel() for tensor in inputs if tensor is not None)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own check looks at it
@pytest.mark.parametrize("norm", NORMS)
def test_as_registered_operations(norm: str) -> None:
    how = (norm, 1e-5, "gelu", norm != "none")
    inputs = drawn((2, 4, 3, 3), 8, norm, norm == "group_norm", torch.float32)
    torch.library.opcheck(lean_mlp, (*inputs, *how, False))
    x, w1, b1, w2, _, *affine = (None if tensor is None else tensor.detach() for tensor in inputs)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        lean_mlp_backward, (x, x.new_empty(0, 8), x, w1, b1, w2, *affine, *how), test_utils=tests
    )
