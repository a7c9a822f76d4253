"""Names to contenders."""

import pytest
import torch
from torch import nn

from benchmarks.suite import forms
from benchmarks.suite.ceilings import Copy
from benchmarks.suite.contender import Contender, prepare
from benchmarks.suite.forms import Form
from benchmarks.suite.row import Row
from metaformer.bench.timing import TrainingStep
from metaformer.errors import ConfigError, UnknownName

ROW = Row(model="poolformer_n", device="cpu", batch=2, size=32, claims=())


def test_a_name_is_side_forms_and_conditions() -> None:
    found = Contender.read("timm channels_last compiled bf16 384", ROW)
    assert found == Contender("timm", ("channels_last", "compiled"), "bf16", 384)
    assert Contender.read("ours eager", ROW) == Contender("ours", ("eager",), "fp32", 32)


@pytest.mark.parametrize(("name", "near"), [("our eager", "ours"), ("ours compild", "compiled")])
def test_unknown_words_are_refused(name: str, near: str) -> None:
    with pytest.raises(UnknownName, match=near):
        Contender.read(name, ROW)


def test_inference_is_compared_with_the_plain_network() -> None:
    exact, rounded = prepare("ours eager", ROW), prepare("ours channels_last bf16", ROW)
    assert exact.difference is not None and exact.difference < 1e-5
    assert rounded.difference is not None and 0 < rounded.difference < 0.1
    assert rounded.images.dtype == torch.bfloat16
    assert rounded.images.is_contiguous(memory_format=torch.channels_last)
    assert prepare("ours eager 64", ROW).images.shape == (2, 3, 64, 64)


def test_a_form_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(form: Form) -> Form:
        return Form(nn.Sequential(form.network, nn.Softmax(1)), form.images)

    monkeypatch.setitem(forms.FORMS, "halved", halved)
    with pytest.raises(ConfigError, match="something else"):
        prepare("ours halved", ROW)


def test_training_is_a_step() -> None:
    row = Row(model="poolformer_n", device="cpu", mode="training", batch=2, size=32, claims=())
    ready = prepare("ours eager", row)
    assert isinstance(ready.module, TrainingStep) and ready.module.model.training
    assert next(ready.module.model.parameters()).grad is not None


def test_ceilings_have_names_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("benchmarks.suite.ceilings", fromlist=["COPIED"]).COPIED, "cpu", 1024)
    ready = prepare("ceiling copy bf16", ROW)
    assert isinstance(ready.module, Copy) and ready.module.a.dtype == torch.bfloat16
