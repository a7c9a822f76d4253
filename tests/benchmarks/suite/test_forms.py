"""What is done to a network keeps what it computes."""

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.suite.forms import FORMS, Form
from metaformer.errors import ConfigError

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(288, 4)).eval()


def same(form: Form) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(form.network(form.images), network()(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["eager", "channels_last"])
def test_layouts(name: str) -> None:
    form = FORMS[name](Form(network(), IMAGES))
    layout = torch.contiguous_format if name == "eager" else torch.channels_last
    assert form.images.is_contiguous(memory_format=layout)
    same(form)


def test_lean_is_asked_of_our_networks() -> None:
    from metaformer.factory import create_model

    made = create_model("poolformer_n", num_classes=3)
    form = FORMS["lean"](Form(made, torch.randn(1, 3, 32, 32)))
    assert [stage.grad_checkpointing for stage in form.network.stages] == ["mlp"] * 4  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compiled", "frozen", "aoti"])
def test_compilers(name: str) -> None:
    same(FORMS[name](FORMS["channels_last"](Form(network(), IMAGES))))


class Network(nn.Module):
    """With a method of its own, which every object of this class shares."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def operations(form: Form) -> list[str]:
    """What a second run calls; the networks' parameters want gradients, as timm's do."""
    with torch.inference_mode():
        form.network(form.images)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            form.network(form.images)
    return [event.name for event in profiler.events() or ()]


@pytest.mark.slow
def test_frozen_takes_nothing_that_was_compiled_without_freezing() -> None:
    first, second = (FORMS["channels_last"](Form(Network(), IMAGES)) for _ in range(2))
    assert "aten::convolution" in operations(FORMS["compiled"](first))
    assert "mkldnn::_convolution_pointwise" in operations(FORMS["frozen"](second))


@pytest.mark.slow
def test_ahead_of_time_weights_are_constants_too() -> None:
    names = operations(FORMS["aoti"](Form(network(), IMAGES)))
    assert names and not any("convolution" in name for name in names), "oneDNN's, on weights laid out"


def test_openvino() -> None:
    same(FORMS["openvino"](Form(network(), IMAGES)))


def test_openvino_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="pip install openvino"):
        FORMS["openvino"](Form(network(), IMAGES))
