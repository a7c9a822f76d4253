from collections.abc import Callable

import pytest
import torch
from metaformer.ops.norm_mlp import norm_mlp
from torch import Tensor

Agrees = Callable[..., None]


def weights(dim: int, hidden: int) -> list[Tensor]:
    return [torch.randn(hidden, dim) / dim**0.5, torch.randn(dim, hidden) / hidden**0.5]


# 130 channels no longer fit one kernel; none of the numbers fills its tiles
@pytest.mark.parametrize(("dim", "hidden"), [(20, 50), (130, 40)])
@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
def test_agrees_with_float64(agrees: Agrees, dim: int, hidden: int, norm: str, dtype: torch.dtype) -> None:
    def everything(x: Tensor, w1: Tensor, w2: Tensor, *vectors: Tensor) -> Tensor:
        b1, b2, gamma, beta, scale, shortcut = vectors
        return norm_mlp(x, w1, b1, w2, b2, norm=norm, gamma=gamma, beta=beta, scale=scale, shortcut=shortcut)

    tensors = [torch.randn(2, dim, 5, 7) + 1, *weights(dim, hidden), torch.randn(hidden)]
    agrees(everything, tensors + [torch.randn(dim) for _ in range(5)], dtype)


@pytest.mark.parametrize("dim", [20, 130])
@pytest.mark.parametrize("norm", ["group_norm", "layer_norm", "none"])
@pytest.mark.parametrize("act", ["relu", "squared_relu"])
def test_what_is_left_out(agrees: Agrees, dim: int, norm: str, act: str) -> None:
    def least(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return norm_mlp(x, w1, None, w2, None, norm=norm, act=act, shortcut=None)

    agrees(least, [torch.randn(1, dim, 3, 3), *weights(dim, 24)], torch.float32)


@pytest.mark.parametrize("dim", [20, 130])
def test_star_relu_learns_its_numbers(agrees: Agrees, dim: int, dtype: torch.dtype) -> None:
    def star(x: Tensor, w1: Tensor, w2: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        return norm_mlp(
            x, w1, None, w2, None, norm="layer_norm", act="star_relu", act_scale=scale, act_bias=offset,
            shortcut=0.5,
        )  # fmt: skip

    tensors = [torch.randn(2, dim, 4, 3), *weights(dim, 24), torch.tensor([0.9]), torch.tensor([-0.4])]
    agrees(star, tensors, dtype)


def test_slices_make_the_same_gradients(agrees: Agrees, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaformer.ops.kernels import matrix_gradient

    monkeypatch.setattr(matrix_gradient, "_LEAST", 8)
    monkeypatch.setattr(matrix_gradient, "_WIDE", 1)

    def mlp(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return norm_mlp(x, w1, None, w2, None, norm="group_norm")

    agrees(mlp, [torch.randn(2, 6, 3, 5), *weights(6, 8)], torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_torch_knows_the_operation(device: str) -> None:
    shapes = [(2, 5, 4, 3), (20, 5), (20,), (5, 20), (5,), (5,)]
    x, w1, b1, w2, gamma, scale = (torch.randn(s, device=device, requires_grad=True) for s in shapes)
    norm_mlp(x, w1, b1, w2, None)
    torch.library.opcheck(
        torch.ops.metaformer.norm_mlp.default,
        (x, w1, b1, w2, None, gamma, None, scale, None, None, None, 1.0, 1e-5, "group_norm", "gelu"),
    )
