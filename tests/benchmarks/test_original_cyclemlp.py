"""The yardstick computes what our CycleMLP computes."""

import pytest
import torch
from torch import Tensor

from benchmarks.original_cyclemlp import FORMS, original
from metaformer.backbones.metaformer import MetaFormer
from metaformer.errors import ConfigError
from metaformer.factory import create_model


@pytest.fixture(scope="module")
def model() -> MetaFormer:
    torch.manual_seed(0)
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 20), "image_size": (64, 64)}
    return create_model("cyclemlp_b1", num_classes=10, **tiny).double()


def images() -> Tensor:
    return torch.randn(2, 3, 68, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_logits_and_gradients(model: MetaFormer, form: str) -> None:
    other = original(model, form)
    ours, theirs = model(images()), other(images())
    torch.testing.assert_close(theirs, ours)
    model.zero_grad()
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(other.stem.weight.grad, model.stem.conv.weight.grad)


def test_weights_are_its_own(model: MetaFormer) -> None:
    shared = {id(p) for p in model.parameters()} & {id(p) for p in original(model).parameters()}
    assert not shared


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="CycleMLP is needed"):
        original(create_model("poolformer_n"))
