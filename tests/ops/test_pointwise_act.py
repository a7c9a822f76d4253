import torch

from metaformer.layers.act import StarReLU
from metaformer.layers.norm import NORMS
from metaformer.layers.pointwise import Pointwise
from metaformer.ops.pointwise_act import pointwise_act


def test_is_norm_product_and_activation() -> None:
    norm, product, act = NORMS.build("layer_norm", 6, bias=False), Pointwise(6, 9), StarReLU(0.9, -0.4)
    x = torch.randn(2, 6, 5, 3)
    got = pointwise_act(
        x, product.weight, product.bias, norm="layer_norm", gamma=norm.weight, act_scale=act.scale,
        act_bias=act.bias,
    )  # fmt: skip
    torch.testing.assert_close(got, act(product(norm(x))))


def test_the_product_alone() -> None:
    x, w = torch.randn(2, 6, 5, 3), torch.randn(9, 6)
    torch.testing.assert_close(pointwise_act(x, w, act="none"), torch.einsum("oc,bchw->bohw", w, x))


def test_no_samples() -> None:
    assert pointwise_act(torch.zeros(0, 6, 5, 3), torch.zeros(9, 6), act="relu").shape == (0, 9, 5, 3)
