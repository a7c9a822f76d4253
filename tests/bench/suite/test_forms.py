"""What is done to a network keeps what it computes."""

import sys

import pytest
import torch
from torch import nn

from metaformer.bench.suite.forms import FORMS, Form
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
    from metaformer.models import create_model

    made = create_model("poolformer_n", num_classes=3)
    form = FORMS["lean"](Form(made, torch.randn(1, 3, 32, 32)))
    assert [stage.grad_checkpointing for stage in form.network.stages] == ["mlp"] * 4  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compiled", "frozen", "aoti"])
def test_compilers(name: str) -> None:
    same(FORMS[name](FORMS["channels_last"](Form(network(), IMAGES))))


def test_openvino() -> None:
    pytest.importorskip("openvino")
    same(FORMS["openvino"](Form(network(), IMAGES)))


def test_openvino_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="pip install openvino"):
        FORMS["openvino"](Form(network(), IMAGES))
