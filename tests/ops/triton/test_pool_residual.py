from collections.abc import Callable

import pytest
import torch
from metaformer.ops.pool_residual import pool_residual
from torch import Tensor

Agrees = Callable[..., None]


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 5, 7, 9), 3), ((1, 70, 3, 2), 3), ((2, 3, 4, 6), 5), ((2, 4, 1, 1), 3), ((1, 4, 3, 3), 1)],
)
def test_agrees_with_float64(agrees: Agrees, shape: tuple[int, ...], size: int, dtype: torch.dtype) -> None:
    agrees(
        lambda x, w: pool_residual(x, w, size, 1e-5),
        [channels_last(*shape) + 2, torch.randn(shape[1])],
        dtype,
    )


@pytest.mark.parametrize("shortcut", [0.0, 0.5])
def test_other_shortcuts(agrees: Agrees, shortcut: float) -> None:
    tensors = [torch.randn(2, 6, 4, 3), torch.randn(6)]
    agrees(lambda x, w: pool_residual(x, w, 3, 1e-5, shortcut), tensors, torch.float32)


def test_a_shortcut_of_each_channel(agrees: Agrees, dtype: torch.dtype) -> None:
    tensors = [channels_last(2, 6, 4, 3), torch.randn(6), torch.randn(6)]
    agrees(lambda x, w, s: pool_residual(x, w, 3, 1e-5, s), tensors, dtype)


def test_maps_with_gaps(agrees: Agrees) -> None:
    tensors = [torch.randn(4, 12, 8, 6)[::2, 1::2, 1:, ::2], torch.randn(12)[::2]]
    agrees(lambda x, w: pool_residual(x, w, 3, 1e-5), tensors, torch.float32)


def test_a_mean_far_from_zero_costs_no_precision(agrees: Agrees) -> None:
    """A difference of two sums of squares would lose all digits here."""
    tensors = [channels_last(2, 6, 5, 5) + 1000, torch.randn(6)]
    agrees(lambda x, w: pool_residual(x, w, 3, 1e-5, 0.0), tensors, torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_torch_knows_the_operation(device: str) -> None:
    x, weight = (torch.randn(s, device=device, requires_grad=True) for s in ((2, 5, 4, 3), (5,)))
    pool_residual(x, weight, 3, 1e-5)
    torch.library.opcheck(torch.ops.metaformer.pool_residual.default, (x, weight, None, 3, 1e-5, 1.0))
