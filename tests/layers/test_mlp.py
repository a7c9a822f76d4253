import pytest
import torch

from metaformer.layers.mlp import Mlp


def test_mlp_is_two_products_per_position() -> None:
    mlp = Mlp(4, 8, 6, act="relu")
    x = torch.randn(2, 4, 3, 3)
    tokens = x.permute(0, 2, 3, 1)
    hidden = (tokens @ mlp.fc1.weight[:, :, 0, 0].T + mlp.fc1.bias).relu()
    expected = hidden @ mlp.fc2.weight[:, :, 0, 0].T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x).permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_factor_per_channel_is_in_the_weights(bias: bool) -> None:
    mlp = Mlp(4, 8, 6, bias=bias).double()
    x, factor = torch.randn(2, 4, 3, 3).double(), torch.randn(6).double()
    torch.testing.assert_close(mlp(x, factor), mlp(x) * factor[:, None, None])


def test_dropout_and_bias_options() -> None:
    mlp = Mlp(4, 8, bias=False, dropout=0.5).train()
    assert mlp.fc1.bias is None and mlp.fc2.bias is None
    x = torch.randn(1, 4, 2, 2)
    assert not torch.equal(mlp(x), mlp(x))
    assert torch.equal(mlp.eval()(x), mlp(x))
