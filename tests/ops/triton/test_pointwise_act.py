from collections.abc import Callable

import pytest
import torch
from metaformer.ops.pointwise_act import pointwise_act
from torch import Tensor

Agrees = Callable[..., None]


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm", "none"])
def test_agrees_with_float64(agrees: Agrees, norm: str, dtype: torch.dtype) -> None:
    def star(x: Tensor, w: Tensor, scale: Tensor, offset: Tensor, *gamma: Tensor) -> Tensor:
        return pointwise_act(
            x, w, norm=norm, gamma=gamma[0] if gamma else None, act_scale=scale, act_bias=offset
        )

    tensors = [torch.randn(2, 20, 3, 5) + 1, torch.randn(40, 20) / 4, torch.randn(1), torch.randn(1)]
    agrees(star, tensors + ([] if norm == "none" else [torch.randn(20)]), dtype)


def test_bias_without_activation(agrees: Agrees) -> None:
    tensors = [torch.randn(2, 20, 3, 5), torch.randn(40, 20) / 4, torch.randn(40)]
    agrees(lambda x, w, b: pointwise_act(x, w, b, act="none"), tensors, torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_torch_knows_the_operation(device: str) -> None:
    shapes = [(2, 5, 4, 3), (20, 5), (5,), (1,), (1,)]
    x, w, gamma, scale, offset = (torch.randn(s, device=device, requires_grad=True) for s in shapes)
    pointwise_act(x, w, act="none")
    torch.library.opcheck(
        torch.ops.metaformer.pointwise_act.default,
        (x, w, None, gamma, None, scale, offset, 1e-5, "layer_norm", "star_relu"),
    )
