import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.ops.layer_norm import layer_norm


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 70), st.sampled_from(["none", "weight", "both"]), st.booleans())
def test_is_the_norm(tokens: int, dim: int, constants: str, low: bool) -> None:
    torch.manual_seed(0)
    dtype, tolerance = (torch.bfloat16, 3e-2) if low else (torch.float32, 1e-5)
    x = (torch.randn(2, tokens, dim) * 3 + 20).to(dtype)
    weight = None if constants == "none" else torch.randn(dim).to(dtype)
    bias = torch.randn(dim).to(dtype) if constants == "both" else None
    found = layer_norm(x, 1e-2, weight, bias)
    wide = [None if part is None else part.double() for part in (weight, bias)]
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), F.layer_norm(x.double(), (dim,), *wide, 1e-2), rtol=tolerance, atol=tolerance
    )


def test_has_a_gradient() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer_norm(x, 1e-5), x)
