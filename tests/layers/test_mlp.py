import torch

from metaformer.layers.mlp import Mlp


def test_mlp_is_two_products_per_position() -> None:
    mlp = Mlp(4, 8, 6, act="relu")
    x = torch.randn(2, 4, 3, 3)
    tokens = x.permute(0, 2, 3, 1)
    hidden = (tokens @ mlp.fc1.weight[:, :, 0, 0].T + mlp.fc1.bias).relu()
    expected = hidden @ mlp.fc2.weight[:, :, 0, 0].T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x).permute(0, 2, 3, 1), expected)


def test_dropout_and_bias_options() -> None:
    mlp = Mlp(4, 8, bias=False, dropout=0.5).train()
    assert mlp.fc1.bias is None and mlp.fc2.bias is None
    x = torch.randn(1, 4, 2, 2)
    assert not torch.equal(mlp(x), mlp(x))
    assert torch.equal(mlp.eval()(x), mlp(x))
