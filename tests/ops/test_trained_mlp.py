import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.ops import trained_mlp
from metaformer.ops.native import library
from metaformer.ops.product import ACTS
from tests.ops.numerics import close, threads

pytestmark = pytest.mark.skipif(
    not library.multiplies(torch.float32), reason="the C++ products do not run on this machine"
)
PLAIN = {
    "none": lambda x: x,
    "relu": F.relu,
    "squared_relu": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
}


def drawn(rows: int, dim: int, hidden: int, bias: bool = True) -> list[Tensor]:
    """Tokens, the gradient of the result, w1, b1 and w2."""
    torch.manual_seed(0)
    shapes = (rows, dim), (rows, dim), (hidden, dim), (hidden,), (dim, hidden)
    n, given, w1, b1, w2 = (torch.randn(shape) for shape in shapes)
    return [n, given, w1 / dim**0.5, b1 if bias else torch.zeros_like(b1), w2]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 5, 6, 7, 13, 50, 201]), st.sampled_from([1, 2, 4, 5]),
    st.sampled_from([1, 2, 5, 9, 12]), st.sampled_from(sorted(set(ACTS) - {"none"})),
    st.integers(1, 6), st.booleans(),
)  # fmt: skip
def test_both_passes_are_those_of_float64(
    rows: int, dim: int, hidden: int, act: str, count: int, keep: bool
) -> None:
    n, given, w1, b1, w2 = drawn(rows, 16 * dim, 16 * hidden)
    exact = [tensor.double().requires_grad_() for tensor in (n, w1, b1, w2)]
    wanted = F.linear(PLAIN[act](F.linear(exact[0], exact[1], exact[2])), exact[3])
    gradients = torch.autograd.grad(wanted, exact, given.double())
    out, before = torch.empty_like(n), torch.empty(rows, 16 * hidden)
    with threads(count):
        trained_mlp.forward(n, w1, b1, w2, None, act, None, out, before if keep else None)
        found = trained_mlp.backward(n, given, w1, b1, w2, act, before if keep else None)
    close(out, wanted.detach(), 1e-5)
    for ours, theirs in zip(found, gradients, strict=True):
        close(ours, theirs, 2e-5)


def test_a_kept_map_changes_no_bit() -> None:
    n, given, w1, b1, w2 = drawn(77, 64, 192)
    out, before = torch.empty_like(n), torch.empty(77, 192)
    trained_mlp.forward(n, w1, b1, w2, None, "gelu", None, out, before)
    kept = trained_mlp.backward(n, given, w1, b1, w2, "gelu", before)
    for ours, theirs in zip(trained_mlp.backward(n, given, w1, b1, w2, "gelu"), kept, strict=True):
        assert torch.equal(ours, theirs)


def test_the_same_twice_with_as_many_threads() -> None:
    n, given, w1, b1, w2 = drawn(500, 64, 256)
    for count in (1, 2, 3, 4):
        with threads(count):
            first, second = (trained_mlp.backward(n, given, w1, b1, w2, "gelu") for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_fewer_threads_than_were_asked_for() -> None:
    """The same bits: what is summed with what depends on the number that PyTorch has, not on who comes."""
    code = """if True:
        import torch
        from metaformer.ops import trained_mlp
        torch.manual_seed(0)
        torch.set_num_threads(4)
        n, given, w1, w2 = (torch.randn(size) for size in ((90, 64), (90, 64), (192, 64), (64, 192)))
        found = trained_mlp.backward(n, given, w1, None, w2, "gelu")
        print([part.double().sum().item() for part in found])
    """
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **limit},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for limit in ({}, {"OMP_THREAD_LIMIT": "1"}, {"OMP_THREAD_LIMIT": "3"})
    }
    assert len(said) == 1


def test_what_it_runs_on() -> None:
    weight = torch.randn(32, 16)
    assert trained_mlp.usable(weight)
    assert not any(map(trained_mlp.usable, (weight.double(), weight.bfloat16(), weight[:30], weight[:, :12])))
