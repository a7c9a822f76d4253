import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.ops.token_norm import token_norm, token_norm_gradient


@pytest.mark.parametrize("affine", ["none", "weight", "both"])
@pytest.mark.parametrize("norm", ["group_norm", "layer_norm", "none"])
@pytest.mark.parametrize("size", [(2, 5, 3, 6), (1, 1, 1, 4), (3, 2, 7, 1)])
def test_norm_and_gradient(norm: str, affine: str, size: tuple[int, int, int, int]) -> None:
    tokens = torch.randn(size, dtype=torch.float64, requires_grad=True)
    gamma = torch.randn(size[-1], dtype=torch.float64, requires_grad=True) if affine != "none" else None
    beta = torch.randn(size[-1], dtype=torch.float64, requires_grad=True) if affine == "both" else None
    wanted = tokens * 1.0
    if norm == "group_norm":
        wanted = F.group_norm(tokens.permute(0, 3, 1, 2), 1, gamma, beta, 1e-5).permute(0, 2, 3, 1)
    elif norm == "layer_norm":
        wanted = F.layer_norm(tokens, size[-1:], gamma, beta, 1e-5)
    grad = torch.randn(size, dtype=torch.float64)
    plain = (None if t is None else t.detach() for t in (tokens, gamma, beta))
    x, weight, bias = plain
    assert isinstance(x, Tensor)
    found, *moments = token_norm(x, weight, bias, norm, 1e-5)
    torch.testing.assert_close(found, wanted)
    gradients = token_norm_gradient(grad, x, moments, weight, bias, norm)
    for ours, of in zip(gradients, (tokens, gamma, beta), strict=True):
        assert ours.shape == (size if of is tokens else size[-1:])
        if of is not None and (of is tokens or norm != "none"):
            (theirs,) = torch.autograd.grad(wanted, of, grad, retain_graph=True)
            torch.testing.assert_close(ours, theirs)
