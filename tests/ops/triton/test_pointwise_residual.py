from collections.abc import Callable

import pytest
import torch
from metaformer.ops.pointwise_residual import pointwise_residual
from torch import Tensor

Agrees = Callable[..., None]


def test_agrees_with_float64(agrees: Agrees, dtype: torch.dtype) -> None:
    def whole(y: Tensor, w: Tensor, b: Tensor, x: Tensor, scale: Tensor, shortcut: Tensor) -> Tensor:
        return pointwise_residual(y, w, b, x, scale=scale, shortcut=shortcut)

    shapes = [(2, 40, 3, 5), (20, 40), (20,), (2, 20, 3, 5), (20,), (20,)]
    agrees(whole, [torch.randn(s) for s in shapes], dtype)


@pytest.mark.parametrize("shortcut", [1.0, 0.5])
def test_a_number_for_a_shortcut(agrees: Agrees, shortcut: float) -> None:
    tensors = [torch.randn(s) for s in ((2, 40, 3, 5), (20, 40), (2, 20, 3, 5))]
    agrees(lambda y, w, x: pointwise_residual(y, w, None, x, shortcut=shortcut), tensors, torch.float32)


def test_the_product_alone(agrees: Agrees) -> None:
    tensors = [torch.randn(2, 40, 3, 5), torch.randn(20, 40)]
    agrees(lambda y, w: pointwise_residual(y, w), tensors, torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_torch_knows_the_operation(device: str) -> None:
    shapes = [(2, 20, 4, 3), (5, 20), (5,), (2, 5, 4, 3), (5,)]
    y, w, scale, x, shortcut = (torch.randn(s, device=device, requires_grad=True) for s in shapes)
    pointwise_residual(y, w)
    torch.library.opcheck(
        torch.ops.metaformer.pointwise_residual.default, (y, w, None, scale, x, shortcut, 1.0)
    )
