"""The same numbers as timm's MetaFormers, ConvNeXts, InceptionNeXts and MambaOuts, both ways."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from metaformer.backbones.variants import VARIANTS, family
from metaformer.factory import create_model
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours
from metaformer.weights.load import load_weights
from toys import equal_states

EXACT = ("poolformerv2_s12", "convformer_s18", "caformer_s18")
SIZE = (75, 96)
HEADS = {"poolformer_s12": {"head": "pool_norm_fc", "head_norm_eps": 1e-6}}
"""What timm does: pool, then normalize; the original PoolFormer and this library normalize first."""


def theirs_of(name: str, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name, num_classes=10, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", EXACT)
def test_theirs_to_ours(name: str) -> None:
    theirs, ours = theirs_of(name), create_model(name, num_classes=10).eval()
    report = load_weights(ours, theirs.state_dict())
    assert report.fraction == 1.0 and report.complete
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        assert error(ours.forward_features(image), theirs.forward_features(image)) <= 1e-5
        assert error(ours(image), theirs(image)) <= 1e-4


@pytest.mark.parametrize("name", [*EXACT, "poolformer_s12"])
def test_ours_to_theirs(name: str, tmp_path: Path) -> None:
    ours = create_model(name, num_classes=10, **HEADS.get(name, {})).eval()
    write_state(tmp_path / "ours.safetensors", from_ours(ours.state_dict(), "timm"))
    theirs = timm.create_model(
        name, num_classes=10, checkpoint_path=str(tmp_path / "ours.safetensors")
    ).eval()
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        assert error(ours(image), theirs(image)) <= 1e-4


NAMED_AS_TIMM = [name for name in VARIANTS if family(name) in ("convnext", "inception_next", "mambaout")]
SMALL = {"depths": (1, 2, 1, 1), "dims": (16, 24, 32, 40)}


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of a number with respect to images and, by name, parameters."""
    images = images.clone().requires_grad_()
    model(images).square().sum().backward()
    assert images.grad is not None
    return images.grad, {name: value.grad for name, value in model.named_parameters()}  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMED_AS_TIMM)
def test_every_variant_of_timms_names_both_ways(name: str) -> None:
    sizes = {} if name == "convnext_atto" else SMALL  # at its own sizes, its products are convolutions there
    theirs = theirs_of(name, **sizes).double()
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    ours = create_model(name, num_classes=10, **sizes).double().eval()
    report = load_weights(ours, theirs.state_dict())
    assert report.fraction == 1.0 and report.complete
    assert equal_states(from_ours(ours.state_dict(), "timm"), theirs.state_dict())
    images = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        assert error(ours.forward_features(images), as_ours(theirs.forward_features(images), ours)) <= 1e-5
        assert error(ours(images), theirs(images)) <= 1e-5
    (x, grads), (their_x, their_grads) = gradients(ours, images), gradients(theirs, images)
    assert error(x, their_x) <= 1e-4
    for key, grad in from_ours(grads, "timm").items():
        assert error(grad, their_grads[key]) <= 1e-4, key


def as_ours(features: Tensor, model: nn.Module) -> Tensor:
    """Features (B, C, H, W), which timm's MambaOut gives as (B, H, W, C)."""
    return features if features.shape[1] == model.num_features else features.permute(0, 3, 1, 2)


def test_the_documented_fields_make_poolformer_timms() -> None:
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    (line,) = re.findall(r"^like_timm = (.*)$", page, re.MULTILINE)
    options = eval(line.replace("metaformer.create_model", "dict", 1).replace('"poolformer_s12", ', ""))
    assert options == HEADS["poolformer_s12"]


def test_poolformer_has_timms_features_and_with_timms_head_its_logits() -> None:
    theirs, official = theirs_of("poolformer_s12"), create_model("poolformer_s12", num_classes=10).eval()
    as_timm = create_model("poolformer_s12", num_classes=10, **HEADS["poolformer_s12"]).eval()
    for model in (official, as_timm):
        assert load_weights(model, theirs.state_dict()).fraction == 1.0
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        features, expected = theirs.forward_features(image), theirs(image)
        assert error(official.forward_features(image), features) <= 1e-5
        assert error(as_timm(image), expected) <= 1e-4
        assert error(official(image), expected) > 1e-2
        normed = official.head.norm(features).mean((2, 3))
        assert error(official(image), theirs.head.fc(normed)) <= 1e-4
