"""Class activation maps against plain gradients, and against the package grad-cam."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metaformer.attribution.cam import grad_cam
from metaformer.attribution.stages import stage_of
from metaformer.errors import ConfigError, MissingPackage
from metaformer.factory import create_detector, create_model, create_segmenter
from metaformer.mixers import MIXERS

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}


def plain_cam(
    network: nn.Module, layer: nn.Module, x: Tensor, index: int, per_position: bool = False
) -> Tensor:
    """The rule of the papers, by autograd."""
    kept: list[Tensor] = []
    hook = layer.register_forward_hook(lambda *call: kept.append(call[2]))
    logit = network(x)[:, index].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, kept[0])
    weight = gradient if per_position else gradient.mean((2, 3), keepdim=True)
    return (weight * kept[0]).sum(1).relu().detach()


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_maps_of_every_mixer_and_stage_are_the_papers(mixer: str) -> None:
    torch.manual_seed(0)
    network = create_model("poolformer_n", num_classes=4, mixers=mixer, image_size=(64, 64), **TINY).eval()
    x = torch.randn(2, 3, 64, 64)
    for stage, side in enumerate((16, 8, 4, 2)):
        layer = stage_of(network, stage)
        for index in range(4):
            cam = grad_cam(lambda x, index=index: network(x)[:, index], layer, x)
            assert cam.shape == (2, side, side) and (cam >= 0).all()
            torch.testing.assert_close(cam, plain_cam(network, layer, x, index))
            cam = grad_cam(lambda x, index=index: network(x)[:, index], layer, x, per_position=True)
            torch.testing.assert_close(cam, plain_cam(network, layer, x, index, per_position=True))


def test_the_score_of_a_place_has_no_map_elsewhere() -> None:
    torch.manual_seed(0)
    network = create_model("poolformer_n", num_classes=4, norm="batch_norm", **TINY).eval()
    layer = stage_of(network, 0)

    def corner(x: Tensor) -> Tensor:
        return network.forward_intermediates(x, indices=(1,))[1][0][:, :, 0, 0].sum(1)

    cam = grad_cam(corner, layer, torch.randn(1, 3, 64, 64), per_position=True)[0]
    assert cam[:8, :8].any() and not cam[8:].any() and not cam[:, 8:].any()


def test_frozen_networks_and_inference_mode_have_maps_too() -> None:
    torch.manual_seed(0)
    network = create_model("poolformer_n", num_classes=4, **TINY).eval()
    x = torch.randn(1, 3, 64, 64)

    def cam(x: Tensor) -> Tensor:
        return grad_cam(lambda x: network(x)[:, 0], stage_of(network, 1), x)

    free = cam(x)
    network.requires_grad_(False)
    with torch.inference_mode():
        torch.testing.assert_close(cam(x.clone()), free)


def test_a_stage_that_does_not_exist_is_named() -> None:
    network = create_model("poolformer_n", num_classes=4, **TINY)
    with pytest.raises(ConfigError, match="stage 4: the network has stages 0 … 3"):
        stage_of(network, 4)
    with pytest.raises(ConfigError, match="Linear: has no stages"):
        stage_of(nn.Linear(1, 1), 0)


def test_networks_on_a_backbone_have_its_stages() -> None:
    for network in (
        create_segmenter("upernet", "poolformer_n"),
        create_detector("retinanet", "poolformer_n"),
    ):
        assert stage_of(network, -1) is network.backbone.stages[3]


def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    network = create_model("poolformer_n", num_classes=4, **TINY)
    with pytest.raises(MissingPackage, match=r"captum: pip install 'metaformer\[explain\]'"):
        grad_cam(network, network.stages[3], torch.zeros(1, 3, 32, 32))


ORACLE = (
    "poolformer_s12",
    "poolformerv2_s12",
    "convformer_s18",
    "caformer_s18",
    "cyclemlp_b1",
    "randformer_s12",
)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ORACLE)
def test_maps_are_those_of_grad_cam(name: str, photographs: list[Image.Image]) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from metaformer.inference.explain import Explainer
    from metaformer.inference.model import describe_network

    torch.manual_seed(0)
    explainer = Explainer(describe_network(create_model(name)).with_preprocess(crop=1.0))
    model = explainer.model
    theirs = GradCAM(model.model, [model.model.stages[-1]])
    correlations = []
    for image in photographs:
        (subject,) = explainer.find(image, 1)
        ours = explainer.heat(image, subject.index)
        x = model.preprocess.transform()(image)[None]
        heat = theirs(x, [ClassifierOutputTarget(subject.index)])[0]
        assert ours.any() and heat.any()
        correlations.append(np.corrcoef(ours.ravel(), heat.ravel())[0, 1])
    print(f"{name:18} {min(correlations):.6f} … {max(correlations):.6f}")
    assert min(correlations) >= 0.999
