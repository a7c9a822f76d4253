import logging
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import metaformer
from metaformer.deploy.int8.graph import float_products, make_graph
from metaformer.errors import OptimizeError
from metaformer.inference.int8_model import load_openvino

pytest.importorskip("openvino")
TINY = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "image_size": (32, 32), "num_classes": 5}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def lively(name: str) -> nn.Module:
    """A tiny network whose LayerScale hides nothing."""
    torch.manual_seed(1)
    model = metaformer.create_model(name, **TINY)
    for value in model.parameters():
        if value.ndim < 2:
            nn.init.uniform_(value.data, 0.2, 1.0)
    return model.eval()


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("caformer_s18", "cyclemlp_b1", "randformer_s12")
]


@pytest.mark.parametrize("name", ["poolformer_s12", *SLOW])
def test_families(name: str) -> None:
    """The same logits for another number of images, and products by the names of modules."""
    model = lively(name)
    graph: Any = make_graph(model, IMAGES)
    images = torch.cat([IMAGES, IMAGES + 1])
    network = load_openvino().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        wanted = model(images)
    torch.testing.assert_close(torch.from_numpy(network(images.numpy())[0]), wanted, rtol=1e-3, atol=1e-3)
    products, left = float_products(graph)
    assert products == left  # nothing is quantized yet
    own = {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {"stem.conv", "stages.0.blocks.0.mlp.fc1", "stages.3.blocks.0.mlp.fc2"} <= own
    assert own <= set(products)


class Sixth(nn.Module):
    """What OpenVINO has no word for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x).mean((2, 3))


class Counting(nn.Module):
    """Something else at each call, which no graph can show."""

    calls: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return x.mean((2, 3)) * len(self.calls)


def test_an_operation_that_openvino_lacks() -> None:
    level = logging.getLogger().level
    with pytest.raises(OptimizeError, match=r"cannot take Sixth: .*bessel_j0"):
        make_graph(Sixth(), IMAGES)
    assert logging.getLogger().level == level  # the program's log goes on


def test_a_graph_that_differs_is_refused() -> None:
    with pytest.raises(OptimizeError, match=r"form of Counting differs .* please report"):
        make_graph(Counting(), IMAGES)
