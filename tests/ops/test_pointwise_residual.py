import torch

from metaformer.ops.pointwise_residual import pointwise_residual


def test_is_product_scale_and_shortcut() -> None:
    y, w, b = torch.randn(2, 6, 5, 3), torch.randn(4, 6), torch.randn(4)
    x, scale, shortcut = torch.randn(2, 4, 5, 3), torch.randn(4), torch.randn(4)
    product = torch.einsum("oc,bchw->bohw", w, y) + b[:, None, None]
    branch = product * scale[:, None, None]
    torch.testing.assert_close(pointwise_residual(y, w, b), product)
    torch.testing.assert_close(pointwise_residual(y, w, b, x), x + product)
    torch.testing.assert_close(pointwise_residual(y, w, b, x, shortcut=None), product)
    torch.testing.assert_close(pointwise_residual(y, w, b, x, scale=scale, shortcut=0.5), 0.5 * x + branch)
    torch.testing.assert_close(
        pointwise_residual(y, w, b, x, scale=scale, shortcut=shortcut), x * shortcut[:, None, None] + branch
    )


def test_no_samples() -> None:
    assert pointwise_residual(torch.zeros(0, 6, 5, 3), torch.zeros(4, 6)).shape == (0, 4, 5, 3)
