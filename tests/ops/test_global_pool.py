import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.ops.global_pool import global_pool
from metaformer.ops.linear import NORMS
from metaformer.ops.norm import norm as normalized
from ops.numerics import DTYPES, backends, close, mode, threads


@backends("reference", "cpp")
@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(2, 70), st.sampled_from(list(NORMS)),
    st.sampled_from(["none", "weight", "both"]), st.sampled_from(list(DTYPES)), st.integers(1, 4),
)  # fmt: skip
def test_agrees_with_float64(
    backend: str, batch: int, height: int, width: int, channels: int, norm: str, affine: str,
    dtype: torch.dtype, worker: int,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    x = (torch.randn(batch, height, width, channels) * 3 + 5).to(dtype)
    constants = dtype if backend == "reference" else torch.float32
    has_weight, has_bias = affine != "none" and norm != "none", affine == "both" and norm != "none"
    weight = torch.randn(channels).to(constants) if has_weight else None
    bias = torch.randn(channels).to(constants) if has_bias else None
    with threads(worker), mode(backend):
        found = global_pool(x, norm, weight, bias, 1e-3)
    wide = (None if part is None else part.double() for part in (weight, bias))
    wanted = normalized(x.double(), norm, *wide, 1e-3).mean((1, 2))
    assert found.dtype == dtype and found.shape == (batch, channels)
    close(found, wanted, DTYPES[dtype])


def test_constants_may_have_gradients() -> None:
    weight = torch.ones(5, requires_grad=True)
    global_pool(torch.randn(2, 3, 4, 5), "layer_norm", weight).sum().backward()
    assert weight.grad is not None
