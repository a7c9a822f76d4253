"""Products that are seen, and run again."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.suite.convolutions import Product, Replay, products
from benchmarks.suite.sides import build
from metaformer.bench.counts import count
from metaformer.errors import ConfigError

TWO = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 7, padding=3, groups=8, bias=False))


def test_shapes_strides_and_groups() -> None:
    assert products(TWO, (2, 3, 16, 16)) == [
        Product((2, 3, 16, 16), (8, 3, 3, 3), True, (2, 2), (1, 1), 1),
        Product((2, 8, 8, 8), (8, 1, 7, 7), False, (1, 1), (3, 3), 8),
    ]
    assert next(TWO.parameters()).device.type == "cpu"


@pytest.mark.parametrize(("side", "model"), [("ours", "poolformer_n"), ("ours", "caformer_s18")])
def test_nothing_of_a_model_is_missed(side: str, model: str) -> None:
    network = build(side, model, 64)
    counts = count(network, (64, 64))
    found = sum(product.macs for product in products(network, (2, 3, 64, 64)))
    assert found == pytest.approx(2 * (counts.convolutions + counts.products), rel=0.01)


@pytest.mark.parametrize("quickest", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_run_again(quickest: bool, dtype: torch.dtype) -> None:
    network = nn.Sequential(TWO, nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    replay = Replay(network, torch.zeros(2, 3, 16, 16, dtype=dtype), quickest)
    assert len(replay.runs) == 4
    with torch.inference_mode():
        shapes = [tuple(run(x).shape) for run, x in replay.runs]
        assert replay(torch.zeros(1)) is None
    assert [shape[0] for shape in shapes] == [2] * 4 and shapes[-1] == (2, 4)


class Hidden(nn.Module):
    """Says that it multiplies, in an operation that no one sees."""

    def macs(self, height: int, width: int) -> int:
        return 10**9

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_hidden_products_are_told() -> None:
    with pytest.raises(ConfigError, match="can be seen"):
        products(nn.Sequential(TWO, Hidden()), (1, 3, 16, 16))
