from collections.abc import Callable

import pytest
import torch
from metaformer.ops.cycle_mix import cycle_mix
from torch import Tensor

Agrees = Callable[..., None]


def parts(batch: int, dim: int) -> list[Tensor]:
    return [torch.randn(dim, dim) / dim**0.5 for _ in range(3)] + [torch.randn(batch, 3, dim).softmax(1)]


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((2, 20, 5, 7), 3), ((1, 40, 2, 9), 5), ((3, 16, 1, 1), 3), ((1, 5, 3, 2), 7), ((1, 4, 3, 3), 1)],
)
def test_agrees_with_float64(agrees: Agrees, shape: tuple[int, ...], kernel: int, dtype: torch.dtype) -> None:
    tensors = [torch.randn(shape), *parts(shape[0], shape[1])]
    agrees(lambda x, a, b, c, share: cycle_mix(x, a, b, c, share, kernel), tensors, dtype)


def test_maps_and_weights_with_gaps(agrees: Agrees) -> None:
    tensors = [torch.randn(4, 12, 8, 6)[::2, ::2, 1:, ::2], *parts(2, 6)[:3], torch.randn(2, 6, 3).mT]
    agrees(lambda x, a, b, c, share: cycle_mix(x, a, b, c, share, 3), tensors, torch.float32)


def test_long_maps_are_summed_in_parts(agrees: Agrees, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaformer.ops.kernels import shift_product

    monkeypatch.setattr(shift_product, "_CHUNK", 32)
    tensors = [torch.randn(2, 4, 7, 9), *parts(2, 4)]
    agrees(lambda x, a, b, c, share: cycle_mix(x, a, b, c, share, 3), tensors, torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_torch_knows_the_operation(device: str) -> None:
    shapes = [(2, 5, 4, 3), (5, 5), (5, 5), (5, 5), (2, 3, 5)]
    tensors = [torch.randn(s, device=device, requires_grad=True) for s in shapes]
    cycle_mix(*tensors, 3)
    torch.library.opcheck(torch.ops.metaformer.cycle_mix.default, (*tensors, 3))
