import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops.stencil import pool_minus_self


def plain(x: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False) - x


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 5]),
    st.booleans(),
)  # fmt: skip
def test_is_pooling_less_the_map(
    batch: int, dim: int, height: int, width: int, size: int, last: bool
) -> None:
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    found, wanted = pool_minus_self(x, size), plain(x, size)
    assert torch.equal(found, wanted)
    assert not last or not batch or found.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(found)
    (ours,), (theirs,) = (torch.autograd.grad(y, x, grad) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs)


def test_gradients_of_gradients() -> None:
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: pool_minus_self(x, 3).square(), (x,))


def test_keeps_nothing() -> None:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: torch.empty(0)):
        pool_minus_self(torch.randn(1, 2, 4, 4, requires_grad=True), 3)
    assert not kept


def test_under_vmap() -> None:
    x = torch.randn(3, 2, 2, 4, 4)
    got = torch.vmap(lambda each: pool_minus_self(each, 3))(x)
    assert torch.equal(got, torch.stack([plain(each, 3) for each in x]))
