import copy

import pytest
import torch
import torch.nn.functional as F

from metaformer.deploy.folded.linear import ACTIVATIONS, PackedLinear, fold_linear


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(2, 3, *shape)


@pytest.mark.parametrize("act", list(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_that_activates(act: str, bias: bool) -> None:
    x, weight, offset = tokens(5, 7), torch.randn(4, 7), torch.randn(4) if bias else None
    product = PackedLinear(weight, offset)
    with torch.inference_mode():
        torch.testing.assert_close(product(x, act), ACTIVATIONS[act](F.linear(x, weight, offset)))
    x.requires_grad_()
    product(x, act).sum().backward()
    assert x.grad is not None


def test_a_linear_map_that_adds() -> None:
    x, other, product = tokens(7), tokens(4), PackedLinear(torch.randn(4, 7), torch.randn(4))
    with torch.inference_mode():
        found = product(x, residual=other)
    torch.testing.assert_close(found, F.linear(x, product.weight, product.bias) + other)


def test_what_is_laid_out_follows_the_weight() -> None:
    x, product = tokens(7), PackedLinear(torch.randn(4, 7))
    with torch.inference_mode():
        product(x)
        other = PackedLinear(torch.randn(4, 7))
        product.load_state_dict(other.state_dict())
        torch.testing.assert_close(product(x), F.linear(x, other.weight))
        torch.testing.assert_close(copy.deepcopy(product)(x), product(x))
        assert product.double()(x.double()).dtype == torch.float64


def test_constants_around_a_product() -> None:
    x, weight, bias = torch.randn(9, 7), torch.randn(4, 7), torch.randn(4)
    gain, shift, scale = torch.randn(7), torch.randn(7), torch.randn(4)
    wanted = scale * F.linear(gain * x + shift, weight, bias)
    found = fold_linear(weight[:, :, None, None], bias, gain=gain, shift=shift, scale=scale)(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    wanted = scale * F.linear(gain * x, weight)
    torch.testing.assert_close(
        fold_linear(weight, None, gain=gain, scale=scale)(x), wanted, rtol=1e-5, atol=1e-5
    )
