import pytest
import torch

from metaformer.layers.pointwise import Pointwise, _Matrix


def test_pointwise_maps_channels_of_each_position() -> None:
    layer = Pointwise(3, 5)
    assert layer.weight.shape == (5, 3, 1, 1)
    x = torch.randn(2, 3, 4, 4)
    expected = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x)
    torch.testing.assert_close(layer(x), expected)  # the bias starts at zero


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_matrix_has_a_gradient_laid_out_as_the_weight(layout: torch.memory_format) -> None:
    layer = Pointwise(3, 5).double().to(memory_format=layout)
    matrix = layer.matrix()
    assert torch.equal(matrix, layer.weight[:, :, 0, 0])
    (matrix.cos() * torch.arange(15.0).view(5, 3)).sum().backward()
    grad = layer.weight.grad
    assert grad is not None and grad.stride() == layer.weight.stride()
    torch.testing.assert_close(
        grad[:, :, 0, 0], -matrix.sin() * torch.arange(15.0, dtype=torch.float64).view(5, 3)
    )
    assert torch.autograd.gradgradcheck(lambda weight: _Matrix.apply(weight).cos(), layer.weight)
