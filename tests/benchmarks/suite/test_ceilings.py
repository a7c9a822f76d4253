"""Ceilings know their work, and a network's products can be run alone."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.suite import ceilings
from benchmarks.suite.ceilings import Product, Replay, products
from benchmarks.suite.contender import build
from metaformer.bench.counts import count
from metaformer.errors import ConfigError

TWO = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 7, padding=3, groups=8, bias=False))


def test_work_is_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 8})
    monkeypatch.setattr(ceilings, "POSITIONS", {"cpu": (1, 2, 2)})
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 64})
    made = [kind(torch.device("cpu"), torch.float32) for kind in ceilings.CEILINGS.values()]
    assert [ceiling.work for ceiling in made] == [2 * 8**3, 2 * 4 * 512 * 2048, 2 * 64]
    for ceiling in made:
        ceiling(torch.empty(1))


def test_shapes_strides_and_groups() -> None:
    assert products(TWO, (2, 3, 16, 16)) == [
        Product((2, 3, 16, 16), (8, 3, 3, 3), True, (2, 2), (1, 1), 1),
        Product((2, 8, 8, 8), (8, 1, 7, 7), False, (1, 1), (3, 3), 8),
    ]
    assert next(TWO.parameters()).device.type == "cpu"


@pytest.mark.parametrize(("side", "model"), [("ours", "poolformer_n"), ("ours", "caformer_s18")])
def test_all_products_of_a_model(side: str, model: str) -> None:
    network = build(side, model, 64)
    counts = count(network, (64, 64))
    found = sum(product.macs for product in products(network, (2, 3, 64, 64)))
    assert found == pytest.approx(2 * (counts.convolutions + counts.products), rel=0.01)


@pytest.mark.parametrize("fastest", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_replayed(fastest: bool, dtype: torch.dtype) -> None:
    network = nn.Sequential(TWO, nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    replay = Replay(network, torch.zeros(2, 3, 16, 16, dtype=dtype), fastest)
    assert len(replay.runs) == 4
    with torch.inference_mode():
        shapes = [tuple(run(x).shape) for run, x in replay.runs]
        assert replay(torch.zeros(1)) is None
    assert [shape[0] for shape in shapes] == [2] * 4 and shapes[-1] == (2, 4)


class Hidden(nn.Module):
    """Reports multiply-adds in an operation that is no product."""

    def macs(self, height: int, width: int) -> int:
        return 10**9

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_hidden_products_are_refused() -> None:
    with pytest.raises(ConfigError, match="products"):
        products(nn.Sequential(TWO, Hidden()), (1, 3, 16, 16))
