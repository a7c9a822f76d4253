"""Linear layers with activation, residual and constants folded in."""

import copy

import pytest
import torch
import torch.nn.functional as F

from metaformer.deploy.folded.linear import ACTIVATIONS, PackedLinear, fold_linear


@pytest.mark.parametrize("act", list(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_activation(act: str, bias: bool) -> None:
    x, weight, offset = torch.randn(2, 3, 5, 7), torch.randn(4, 7), torch.randn(4) if bias else None
    layer = PackedLinear(weight, offset)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, act), ACTIVATIONS[act](F.linear(x, weight, offset)))
    x.requires_grad_()
    layer(x, act).sum().backward()
    assert x.grad is not None


def test_residual() -> None:
    x, residual, layer = (
        torch.randn(2, 3, 7),
        torch.randn(2, 3, 4),
        PackedLinear(torch.randn(4, 7), torch.randn(4)),
    )
    with torch.inference_mode():
        y = layer(x, residual=residual)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias) + residual)


def test_the_packed_weight_follows_the_weight() -> None:
    x, layer, other = torch.randn(2, 3, 7), PackedLinear(torch.randn(4, 7)), PackedLinear(torch.randn(4, 7))
    with torch.inference_mode():
        layer(x)
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer(x), F.linear(x, other.weight))
        torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
        assert layer.double()(x.double()).dtype == torch.float64


def test_folded_constants() -> None:
    x, weight, bias = torch.randn(9, 7), torch.randn(4, 7), torch.randn(4)
    gain, shift, scale = torch.randn(7), torch.randn(7), torch.randn(4)
    layer = fold_linear(weight[:, :, None, None], bias, gain=gain, shift=shift, scale=scale)
    expected = scale * F.linear(gain * x + shift, weight, bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    layer = fold_linear(weight, None, gain=gain, scale=scale)
    torch.testing.assert_close(layer(x), scale * F.linear(gain * x, weight), rtol=1e-5, atol=1e-5)
