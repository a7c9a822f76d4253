import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops import cpp
from metaformer.ops.attention import attention, reference
from ops.numerics import DTYPES, backends, close, mode, needs_cpp, threads

LANES = cpp.lanes()


def formula(qkv: Tensor) -> Tensor:
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    y: Tensor = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return y.transpose(1, 2).flatten(2)


@backends("reference", "cpp")
@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 4),
    st.sampled_from([1, 5, LANES, 2 * LANES, 3 * LANES, 4 * LANES, LANES + LANES // 2]),
    st.sampled_from(list(DTYPES)), st.integers(1, 5),
)  # fmt: skip
def test_agrees_with_float64(
    backend: str, batch: int, count: int, heads: int, head_dim: int, dtype: torch.dtype, worker: int
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(batch, count, 3, heads, head_dim).to(dtype)
    before = qkv.clone()
    with threads(worker), mode(backend):
        found = attention(qkv)
    assert found.shape == (batch, count, heads * head_dim) and found.dtype == dtype
    assert torch.equal(qkv, before)
    close(found, formula(qkv), DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [71, 197, 500])
def test_many_tokens(count: int, dtype: torch.dtype) -> None:
    qkv = torch.randn(1, count, 3, 2, 2 * LANES).to(dtype)
    close(attention(qkv), formula(qkv), DTYPES[dtype])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.sampled_from([5, LANES, 2 * LANES]), st.sampled_from([-1, 1]))
def test_large_scores_do_not_overflow(count: int, head_dim: int, sign: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, count, 3, 2, head_dim)
    qkv[:, :, 0] *= 30 * sign
    qkv[:, :, 1] *= 30
    found = attention(qkv)
    assert found.isfinite().all()
    close(found, formula(qkv), 2e-3)  # of scores in the thousands, which hold three digits behind the point


def test_one_of_two_tokens_far_ahead_is_taken_whole() -> None:
    qkv = torch.zeros(1, 2, 3, 1, LANES)
    qkv[:, :, 0], qkv[:, 1, 1], qkv[:, :, 2] = 100.0, 100.0, torch.tensor([3.0, 5.0])[:, None, None]
    assert attention(qkv).eq(5.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token_gives_its_value(dtype: torch.dtype) -> None:
    qkv = torch.randn(2, 1, 3, 1, LANES).to(dtype)
    assert torch.equal(attention(qkv), qkv[:, :, 2].flatten(2))


@needs_cpp
@pytest.mark.parametrize("which", range(3), ids="qkv")
@pytest.mark.parametrize("worker", [1, 3, 5])
def test_nan_stays_in_its_sample_and_head(which: int, worker: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 20, 3, 3, 2 * LANES)
    broken = qkv.clone()
    broken[1, 4, which, 2, 5] = torch.nan
    with threads(worker):
        whole, found = (attention(x).view(2, 20, 3, -1) for x in (qkv, broken))
    reached = torch.zeros_like(found, dtype=torch.bool)
    reached[[(1, 4, 2), (1, slice(None), 2), (1, slice(None), 2, 5)][which]] = True
    assert torch.equal(found.isnan(), reached)
    assert torch.equal(found[~reached], whole[~reached])


def test_the_number_of_threads_changes_nothing() -> None:
    qkv, found = torch.randn(1, 50, 3, 2, LANES), []
    for worker in range(1, 6):
        with threads(worker):
            found.append(attention(qkv))
    assert all(torch.equal(found[0], other) for other in found)


def test_gaps_in_memory_and_other_dtypes_take_the_reference() -> None:
    qkv = torch.randn(2, 9, 3, 2, 2 * LANES)[..., :LANES]
    assert not cpp.supports(qkv) and not cpp.supports(qkv.double())
    assert torch.equal(attention(qkv), reference(qkv))
    close(attention(qkv.double()), formula(qkv), 1e-12)


def test_has_a_gradient() -> None:
    qkv = torch.randn(1, 3, 3, 1, LANES, requires_grad=True)
    assert not cpp.supports(qkv)
    (found,) = torch.autograd.grad(attention(qkv).square().sum(), qkv)
    (wanted,) = torch.autograd.grad(formula(qkv).square().sum(), qkv)
    close(found, wanted, 1e-5)
