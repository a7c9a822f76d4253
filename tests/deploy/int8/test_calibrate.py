import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaformer
from metaformer.deploy.int8.graph import calibrate, float_products, load_nncf, make_graph
from metaformer.errors import MissingPackage

IMAGES = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
INPUTS = list(IMAGES.unsqueeze(1).numpy())


def graph_of(model: nn.Module) -> tuple[Any, list[int]]:
    """A network's graph, and labels by which it is always right."""
    with torch.inference_mode():
        return make_graph(model, IMAGES[:2]), model(IMAGES).argmax(dim=1).tolist()


def test_all_but_depthwise_convolutions() -> None:
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "image_size": (32, 32)}
    graph, labels = graph_of(metaformer.create_model("convformer_s18", num_classes=5, **tiny).eval())
    products, left = float_products(calibrate(graph, INPUTS, labels, None))
    assert left == [f"stages.{i}.blocks.0.token_mixer.dwconv" for i in range(4)] and len(products) > 20
    assert float_products(graph)[1] == products  # the graph itself is as it was


class Fragile(nn.Module):
    """Two products; the first one's classes lie closer together than int8 can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 400, 32)
        self.narrow = nn.Linear(400, 400, bias=False)
        nn.init.eye_(self.narrow.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x).flatten(1))


def test_a_limit_gives_products_back() -> None:
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    graph, labels = graph_of(Fragile().eval())
    assert not float_products(calibrate(graph, INPUTS, labels, None))[1]
    assert float_products(calibrate(graph, INPUTS, labels, 0.001))[1]


def test_nncf_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackage, match=r"quantizing needs nncf: pip install 'metaformer\[int8\]'"):
        load_nncf()
