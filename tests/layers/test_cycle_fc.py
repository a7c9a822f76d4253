import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from metaformer.errors import ConfigError
from metaformer.layers.cycle_fc import CycleFC
from metaformer.ops.cycle import staircase


def deformable(layer: CycleFC, x: Tensor) -> Tensor:
    """The original's form: a deformable 1×1 convolution with fixed whole-number offsets."""
    batch, dim, height, width = x.shape
    stairs = staircase(layer.staircase)
    offset = x.new_zeros(1, 2 * dim, 1, 1)
    first = 0 if layer.axis == "height" else 1  # torchvision: (dy, dx) per channel
    offset[0, first::2, 0, 0] = x.new_tensor([stairs[c % len(stairs)] for c in range(dim)])
    return deform_conv2d(x, offset.expand(batch, -1, height, width), layer.weight, layer.bias)


@pytest.mark.parametrize("axis", ["width", "height"])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 5)])
def test_equals_the_deformable_convolution(kernel: int, axis: str, size: tuple[int, int]) -> None:
    layer = CycleFC(10, kernel, axis).double()  # type: ignore[arg-type]
    x = torch.randn(2, 10, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), deformable(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("options", "word"), [({"kernel": 4}, "odd"), ({"axis": "depth"}, "depth")])
def test_bad_options(options: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        CycleFC(8, **options)  # type: ignore[arg-type]
