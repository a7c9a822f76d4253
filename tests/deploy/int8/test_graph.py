"""OpenVINO's graph of a network, and its quantization."""

import logging
import sys
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import metaformer
from metaformer.deploy.int8.graph import calibrate, float_products, load_nncf, make_graph
from metaformer.errors import MissingPackage, OptimizeError
from metaformer.inference.int8_model import load_openvino

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "image_size": (32, 32), "num_classes": 5}
IMAGES = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
INPUTS = list(IMAGES.unsqueeze(1).numpy())


def trained(name: str) -> nn.Module:
    """A tiny network whose LayerScale hides nothing."""
    torch.manual_seed(1)
    model = metaformer.create_model(name, **TINY)
    for value in model.parameters():
        if value.ndim < 2:
            nn.init.uniform_(value.data, 0.2, 1.0)
    return model.eval()


def graph_of(model: nn.Module) -> tuple[Any, list[int]]:
    """A network's graph, and labels by which it is always right."""
    with torch.inference_mode():
        return make_graph(model, IMAGES[:2]), model(IMAGES).argmax(dim=1).tolist()


SLOW = ("caformer_s18", "cyclemlp_b1", "randformer_s12")


@pytest.mark.parametrize(
    "name", ["poolformer_s12", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_same_logits_at_another_batch_size_and_products_named_after_modules(name: str) -> None:
    model = trained(name)
    graph: Any = make_graph(model, IMAGES[:2])
    network = load_openvino().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        expected = model(IMAGES[:4])
    torch.testing.assert_close(
        torch.from_numpy(network(IMAGES[:4].numpy())[0]), expected, rtol=1e-3, atol=1e-3
    )
    products, left = float_products(graph)
    assert products == left  # nothing is quantized yet
    own = {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {"stem.conv", "stages.0.blocks.0.mlp.fc1", "stages.3.blocks.0.mlp.fc2"} <= own
    assert own <= set(products)


class Bessel(nn.Module):
    """An operation that OpenVINO lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x).mean((2, 3))


class Counting(nn.Module):
    """Another result at each call, which no graph can reproduce."""

    calls: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return x.mean((2, 3)) * len(self.calls)


def test_what_openvino_cannot_convert_is_refused() -> None:
    level = logging.getLogger().level
    with pytest.raises(OptimizeError, match=r"Bessel: .*bessel_j0"):
        make_graph(Bessel(), IMAGES[:2])
    assert logging.getLogger().level == level
    with pytest.raises(OptimizeError, match="Counting differs"):
        make_graph(Counting(), IMAGES[:2])


def test_depthwise_convolutions_alone_stay_in_floating_point() -> None:
    graph, labels = graph_of(trained("convformer_s18"))
    products, left = float_products(calibrate(graph, INPUTS, labels, None))
    assert left == [f"stages.{i}.blocks.0.token_mixer.dwconv" for i in range(4)] and len(products) > 20
    assert float_products(graph)[1] == products  # the graph itself is unchanged


class Fragile(nn.Module):
    """Two products; the first one's classes are closer together than int8 resolves."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 400, 32)
        self.narrow = nn.Linear(400, 400, bias=False)
        nn.init.eye_(self.narrow.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x).flatten(1))


def test_max_drop_leaves_products_in_floating_point() -> None:
    torch.manual_seed(0)
    graph, labels = graph_of(Fragile().eval())
    assert not float_products(calibrate(graph, INPUTS, labels, None))[1]
    assert float_products(calibrate(graph, INPUTS, labels, 0.001))[1]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[int8\]"):
        load_nncf()
