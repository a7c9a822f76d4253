"""Contenders by name: sides, forms and conditions, compared with the plain network."""

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.suite import ceilings
from benchmarks.suite.ceilings import Copy
from benchmarks.suite.contender import FORMS, Contender, Form, build, prepare
from benchmarks.suite.rows import Row
from metaformer.bench.timing import TrainingStep
from metaformer.errors import ConfigError, UnknownName
from metaformer.factory import create_model

ROW = Row(model="poolformer_n", device="cpu", batch=2, size=32, claims=())
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_name_is_side_forms_and_conditions() -> None:
    found = Contender.read("timm channels_last compiled bf16 384", ROW)
    assert found == Contender("timm", ("channels_last", "compiled"), "bf16", 384)
    assert Contender.read("ours eager", ROW) == Contender("ours", ("eager",), "fp32", 32)


@pytest.mark.parametrize(("name", "near"), [("our eager", "ours"), ("ours compild", "compiled")])
def test_unknown_parts_are_refused(name: str, near: str) -> None:
    with pytest.raises(UnknownName, match=near):
        Contender.read(name, ROW)


def test_inference_is_compared_with_the_plain_network() -> None:
    exact, rounded = prepare("ours eager", ROW), prepare("ours channels_last bf16", ROW)
    assert exact.difference is not None and exact.difference < 1e-5
    assert rounded.difference is not None and 0 < rounded.difference < 0.1
    assert rounded.images.dtype == torch.bfloat16
    assert rounded.images.is_contiguous(memory_format=torch.channels_last)
    assert prepare("ours eager 64", ROW).images.shape == (2, 3, 64, 64)


def test_a_form_with_other_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(form: Form) -> Form:
        return Form(nn.Sequential(form.network, nn.Softmax(1)), form.images)

    monkeypatch.setitem(FORMS, "halved", halved)
    with pytest.raises(ConfigError, match="logits"):
        prepare("ours halved", ROW)


def test_training_is_a_step() -> None:
    row = Row(model="poolformer_n", device="cpu", mode="training", batch=2, size=32, claims=())
    ready = prepare("ours eager", row)
    assert isinstance(ready.module, TrainingStep) and ready.module.model.training
    assert next(ready.module.model.parameters()).grad is not None


def test_ceilings_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceilings.COPIED, "cpu", 1024)
    ready = prepare("ceiling copy bf16", ROW)
    assert isinstance(ready.module, Copy) and ready.module.a.dtype == torch.bfloat16


def test_the_same_weights_each_time() -> None:
    first, second = (build("ours", "poolformer_n", 32).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_missing_networks_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="timm"):
        build("tim", "poolformer_s12", 32)
    with pytest.raises(ConfigError, match="timm has no cyclemlp_b1"):
        build("timm", "cyclemlp_b1", 32)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install timm"):
        build("timm", "poolformer_s12", 32)


def test_scales_and_biases_are_perturbed() -> None:
    network = build("ours", "poolformer_n", 32)
    scales = [p for name, p in network.named_parameters() if "layer_scale" in name]
    assert scales and all(scale.std() > 0.05 for scale in scales)


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


def test_our_networks_recompute_their_mlps() -> None:
    form = FORMS["recompute_mlp"](Form(create_model("poolformer_n"), torch.randn(1, 3, 32, 32)))
    assert [stage.grad_checkpointing for stage in form.network.stages] == ["mlp"] * 4  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compiled", "frozen", "aoti"])
def test_compilers(name: str) -> None:
    same(FORMS[name](FORMS["channels_last"](Form(network(), IMAGES))))


class Network(nn.Module):
    """A class whose objects share one method."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def operations(form: Form) -> list[str]:
    """Operations of a second run; the parameters require gradients, as timm's do."""
    with torch.inference_mode():
        form.network(form.images)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            form.network(form.images)
    return [event.name for event in profiler.events() or ()]


@pytest.mark.slow
def test_frozen_does_not_reuse_code_compiled_without_freezing() -> None:
    first, second = (FORMS["channels_last"](Form(Network(), IMAGES)) for _ in range(2))
    assert "aten::convolution" in operations(FORMS["compiled"](first))
    assert "mkldnn::_convolution_pointwise" in operations(FORMS["frozen"](second))


@pytest.mark.slow
def test_weights_are_constants_ahead_of_time() -> None:
    names = operations(FORMS["aoti"](Form(network(), IMAGES)))
    assert names and not any("convolution" in name for name in names), "oneDNN's, on packed weights"


def test_openvino() -> None:
    same(FORMS["openvino"](Form(network(), IMAGES)))


def test_a_missing_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="pip install openvino"):
        FORMS["openvino"](Form(network(), IMAGES))
