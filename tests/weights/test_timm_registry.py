"""Our models inside timm and what builds on it."""

from pathlib import Path

import pytest
import timm
import torch
from timm.task import FeatureDistillationTask, LogitDistillationTask
from torch import nn

from metaformer.backbones.variants import VARIANTS
from metaformer.factory import create_model
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours
from metaformer.weights.timm_registry import register_timm


@pytest.fixture(scope="module")
def names() -> list[str]:
    return register_timm()


def test_every_variant_is_registered_once(names: list[str]) -> None:
    assert names == register_timm() == [f"mf_{name}" for name in VARIANTS]
    assert set(names) <= set(timm.list_models("mf_*"))
    assert type(timm.create_model("poolformer_s12")).__module__.startswith("timm.")
    cfg = timm.get_pretrained_cfg("mf_caformer_s18.sail_in22k_ft_in1k_384")
    assert (
        cfg.input_size == (3, 384, 384)
        and cfg.pool_size == (12, 12)
        and cfg.url.endswith("caformer_s18_384_in21ft1k.pth")
    )
    assert "mf_cyclemlp_b1.in1k" in timm.list_pretrained("mf_cyclemlp*")


@pytest.mark.parametrize("name", VARIANTS)
def test_models_and_pyramids_through_timm(names: list[str], name: str) -> None:
    small = {"depths": (1, 1, 1, 1), "dims": (8, 12, 32, 64)}
    model = timm.create_model(f"mf_{name}", num_classes=5, in_chans=1, drop_path_rate=0.1, **small).eval()
    image = torch.randn(1, 1, 224, 224)
    with torch.no_grad():
        assert model(image).shape == (1, 5)
    pyramid = timm.create_model(
        f"mf_{name}", features_only=True, out_indices=(0, 2, 3), in_chans=1, **small
    ).eval()
    assert pyramid.feature_info.channels() == [8, 32, 64] and pyramid.feature_info.reduction() == [4, 16, 32]
    with torch.no_grad():
        assert [tuple(level.shape[1:]) for level in pyramid(image)] == [(8, 56, 56), (32, 14, 14), (64, 7, 7)]


@pytest.mark.parametrize("feature_cls", ["list", "hook", "fx", "getter"])
@pytest.mark.parametrize(
    "name", ["poolformer_s12", "cyclemlp_b1", "metaformer_pppf_s12", "metaformer_ppaa_s12"]
)
def test_pyramids_by_each_of_timms_extractors(names: list[str], name: str, feature_cls: str) -> None:
    small = {"depths": (1, 1, 1, 1), "dims": (8, 12, 32, 64), "out_indices": (0, 2)}
    pyramid = timm.create_model(f"mf_{name}", features_only=True, feature_cls=feature_cls, **small).train()
    levels = pyramid(torch.randn(1, 3, 224, 224))
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 56, 56), (32, 14, 14)]
    sum(level.square().sum() for level in levels).backward()
    unused = [
        name for name, value in pyramid.named_parameters() if value.requires_grad and value.grad is None
    ]
    assert not unused


def test_a_fixed_grid_is_told(names: list[str]) -> None:
    fixed = {name for name in names if timm.get_pretrained_cfg_value(name, "fixed_input_size")}
    assert fixed == {f"mf_{name}" for name, config in VARIANTS.items() if config.fixed_size}
    assert {"mf_randformer_s12", "mf_metaformer_ppaa_s12", "mf_metaformer_pppf_s12"} <= fixed
    assert not fixed & {"mf_poolformer_s12", "mf_cyclemlp_b1", "mf_caformer_s18"}


@pytest.mark.parametrize("task", [LogitDistillationTask, FeatureDistillationTask])
def test_students_of_timms_distillation(names: list[str], task: type[nn.Module]) -> None:
    small = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "num_classes": 3}
    student = timm.create_model("mf_cyclemlp_b1", **small)
    teacher = timm.create_model("mf_poolformer_s12", **small)
    training = task(student, teacher, criterion=nn.CrossEntropyLoss(), verbose=False)
    training(torch.randn(2, 3, 64, 64), torch.tensor([0, 2]))["loss"].backward()
    assert all(value.grad is not None for value in student.parameters())


def test_devices_and_unknown_options(names: list[str]) -> None:
    model = timm.create_model("mf_caformer_s18", device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}
    with pytest.raises(TypeError, match="not_a_field"):
        timm.create_model("mf_caformer_s18", device="meta", not_a_field=1)


def test_pyramids_compute_channels_last(names: list[str]) -> None:
    """Stem and stages are called by timm itself, so the layout has to come from the weights."""
    pyramid = timm.create_model("mf_poolformer_s12", features_only=True).eval()
    with torch.no_grad():
        levels = pyramid(torch.randn(1, 3, 64, 64))
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in levels)


def test_published_files_through_timm(names: list[str], tmp_path: Path) -> None:
    published = create_model("poolformer_s12").eval()
    path = tmp_path / "poolformer_s12.pth.tar"
    write_state(path, from_ours(published.state_dict(), "poolformer"))
    image = torch.randn(1, 3, 64, 64)
    for source in ({"file": str(path)}, {"file": str(path), "custom_load": True}):
        model = timm.create_model("mf_poolformer_s12", pretrained=True, pretrained_cfg_overlay=source).eval()
        with torch.no_grad():
            assert torch.allclose(model(image), published(image), atol=1e-5)
    pyramid = timm.create_model(
        "mf_poolformer_s12", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, features_only=True
    ).eval()
    with torch.no_grad():
        assert torch.allclose(pyramid(image)[-1], published.forward_features(image), atol=1e-5)


def test_encoders_of_segmentation_models(names: list[str]) -> None:
    import segmentation_models_pytorch as smp

    for name in ("mf_poolformer_s12", "mf_caformer_s18", "mf_cyclemlp_b1"):
        model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=3).eval()
        with torch.no_grad():
            assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_torchvisions_pyramid(names: list[str]) -> None:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    body = timm.create_model("mf_poolformer_s12", features_only=True)
    layers = {name.replace(".", "_"): str(i) for i, name in enumerate(body.feature_info.module_name())}
    model = BackboneWithFPN(body, layers, body.feature_info.channels(), out_channels=16).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    assert {name: tuple(level.shape[1:]) for name, level in maps.items()} == {
        "0": (16, 16, 24),
        "1": (16, 8, 12),
        "2": (16, 4, 6),
        "3": (16, 2, 3),
        "pool": (16, 1, 2),
    }
