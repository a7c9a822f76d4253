import torch

from metaformer.layers.pointwise import Pointwise


def test_pointwise_maps_channels_of_each_position() -> None:
    layer = Pointwise(3, 5)
    assert layer.weight.shape == (5, 3, 1, 1)
    x = torch.randn(2, 3, 4, 4)
    expected = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x)
    torch.testing.assert_close(layer(x), expected)  # the bias starts at zero
