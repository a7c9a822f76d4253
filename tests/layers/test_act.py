import pytest
import torch

from metaformer.layers.act import ACTS, SquaredReLU, StarReLU


@pytest.mark.parametrize("name", list(ACTS))
def test_every_activation_is_elementwise(name: str) -> None:
    act = ACTS.build(name)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(act(x)[:, 1:2], act(x[:, 1:2]))


def test_squared_and_star_relu() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert SquaredReLU()(x).tolist() == [0, 0, 9]
    star = StarReLU(scale=2.0, bias=-1.0)
    assert star(x).tolist() == [-1, -1, 17]
    star(x).sum().backward()
    assert star.scale.grad is not None and star.scale.grad.item() == 9
    assert star.bias.grad is not None and star.bias.grad.item() == 3
