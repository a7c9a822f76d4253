"""Segmentation networks: shapes, losses, results, other backbones, compilation and export."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import FeatureInfo
from metaformer.backbones.stage import Recompute
from metaformer.errors import ConfigError, SizeError
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.segmenter import Segmenter

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
FPN = SegmenterConfig(backbone=TINY, num_classes=7, fpn_dim=12, head_dim=6)
UPERNET = replace(FPN, kind="upernet", auxiliary=True)
KINDS = pytest.mark.parametrize("config", [FPN, UPERNET], ids=lambda config: config.kind)


def labels(*shape: int) -> Tensor:
    drawn = torch.randint(0, 7, shape, dtype=torch.uint8)
    return torch.where(torch.rand(shape) < 0.2, 255, drawn).to(torch.uint8)


@KINDS
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (33, 65), (3, 3), (5, 200)])
def test_logits_have_the_inputs_size(config: SegmenterConfig, size: tuple[int, int]) -> None:
    model = Segmenter(config).eval()
    with torch.no_grad():
        image = torch.randn(2, 3, *size)
        logits = model.forward_head(image)
        assert model(image).shape == (2, 7, *size)
    assert logits.shape == (2, 7, *((side + 4 - 7) // 4 + 1 for side in size))


def test_image_below_min_size_is_refused() -> None:
    model = Segmenter(FPN)
    assert model.min_size == 3
    with pytest.raises(SizeError, match="at least 3×3"):
        model(torch.randn(1, 3, 2, 2))


@KINDS
def test_losses_and_gradients_reach_every_parameter(config: SegmenterConfig) -> None:
    model = Segmenter(config).train()
    losses = model(torch.randn(2, 3, 70, 64), labels(2, 70, 64))
    assert ("auxiliary" in losses) == config.auxiliary
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@KINDS
def test_crops_of_ignored_pixels_have_zero_gradients(config: SegmenterConfig) -> None:
    model = Segmenter(config).train()
    losses = model(torch.randn(2, 3, 64, 64), torch.full((2, 64, 64), 255, dtype=torch.uint8))
    assert losses["loss"].item() == 0.0
    losses["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_auxiliary_head_does_not_change_logits() -> None:
    model = Segmenter(UPERNET).eval()
    plain = Segmenter(replace(UPERNET, auxiliary=False)).eval()
    assert "auxiliary" not in model(torch.randn(1, 3, 32, 32), labels(1, 32, 32))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("auxiliary.")})
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), plain(image))


def test_label_maps_of_another_shape_are_refused() -> None:
    model = Segmenter(FPN)
    for shape in ((1, 64, 64), (2, 1, 64, 64)):
        with pytest.raises(ConfigError, match="targets: shape"):
            model(torch.randn(2, 3, 64, 64), torch.zeros(shape, dtype=torch.uint8))


@torch.no_grad()
def test_decode_crops_the_padding_and_resizes() -> None:
    model = Segmenter(FPN).eval()
    image = torch.randn(2, 3, 64, 96)
    outputs, logits = model.forward_head(image), model(image)
    sizes, originals = [(64, 80), (50, 96)], [(128, 160), (25, 48)]
    first, second = model.decode(outputs, sizes, originals)
    assert first.shape == (128, 160) and second.shape == (25, 48)
    for decoded, whole, (height, width) in zip((first, second), logits, sizes, strict=True):
        cut = whole[None, :, :height, :width]
        again = nn.functional.interpolate(cut, decoded.shape, mode="bilinear", align_corners=False)
        assert torch.equal(decoded, again[0].argmax(0))
    assert all(map(torch.equal, (first, second), model.predict(image, sizes, originals)))
    assert torch.equal(model.predict(image)[1], logits[1].argmax(0))
    # smaller than the batch: the padded size must be known
    (alone,) = model.predict(image[:1], [(64, 80)])
    assert torch.equal(alone, logits[0, :, :64, :80].argmax(0))
    assert torch.equal(alone, model.decode(outputs[:1], [(64, 80)], input_size=(64, 96))[0])


class Pyramid(nn.Module):
    """A backbone that is not a MetaFormer."""

    def __init__(self, info: Any) -> None:
        super().__init__()
        self.feature_info = info
        self.convs = nn.ModuleList([nn.Conv2d(3, 5, 8, 8), nn.Conv2d(5, 6, 2, 2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.convs[0](x)
        return [first, self.convs[1](first)]


class Channels:
    def channels(self) -> list[int]:
        return [5, 6]


LEVELS = [{"num_chs": 5, "reduction": 8}, {"num_chs": 6, "reduction": 16}]


@KINDS
@pytest.mark.parametrize("info", [Channels(), FeatureInfo(LEVELS)])
def test_modules_as_backbones(config: SegmenterConfig, info: Any) -> None:
    model = Segmenter(replace(config, backbone=None), backbone=Pyramid(info))
    assert model(torch.randn(2, 3, 64, 80)).shape == (2, 7, 64, 80)
    assert model(torch.randn(2, 3, 64, 80), labels(2, 64, 80))["loss"].isfinite()
    with pytest.raises(ConfigError, match=r"backbone: .*cannot be saved"):
        model.config.to_dict()


def test_timm_models_as_backbones() -> None:
    import timm

    backbone = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    model = Segmenter(SegmenterConfig(num_classes=4), backbone=backbone).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 4, 64, 64)


def test_gradient_checkpointing_keeps_the_gradients() -> None:
    torch.manual_seed(0)
    model = Segmenter(replace(FPN, dropout=0.0)).train()
    image, truth = torch.randn(2, 3, 64, 64), labels(2, 64, 64)
    gradients = []
    modes: tuple[Recompute, ...] = (False, True, "mlp")
    for enable in modes:
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(image, truth)["loss"].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, *others in zip(*gradients, strict=True):
        assert all(torch.allclose(plain, other, atol=1e-6) for other in others)


def test_layer_wise_decay_groups_by_depth() -> None:
    from timm.models import group_parameters

    for coarse in (False, True):
        depths = group_parameters(model := Segmenter(FPN), model.group_matcher(coarse), reverse=True)
        of = {name.split(".")[0]: depth for name, depth in depths.items()}
        assert depths["backbone.stem.conv.weight"] < depths["backbone.stages.3.blocks.0.mlp.fc1.weight"]
        assert of["head"] == of["neck"] == max(depths.values())
        assert depths["backbone.stages.3.blocks.0.mlp.fc1.weight"] < max(depths.values())


def test_losses_are_single_precision_under_autocast() -> None:
    model = Segmenter(FPN).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(torch.randn(2, 3, 64, 64), labels(2, 64, 64))
    assert losses["loss"].dtype == torch.float32
    losses["loss"].backward()


@KINDS
def test_torch_compile(config: SegmenterConfig) -> None:
    torch.compiler.reset()
    model = Segmenter(config, SegmentationLoss(ohem=0.7, min_kept=10)).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    image = torch.randn(2, 3, 70, 64)
    with torch.no_grad():
        assert torch.allclose(compiled(image), model(image), atol=1e-5)
        truth = labels(2, 70, 64)
        assert torch.allclose(compiled(image, truth)["loss"], model(image, truth)["loss"], atol=1e-5)


@KINDS
def test_export_with_dynamic_sizes(config: SegmenterConfig) -> None:
    model = Segmenter(config).eval()
    example = torch.randn(2, 3, 64, 96)
    dims = {0: torch.export.Dim("batch", min=1, max=8), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (example,), dynamic_shapes=(dims,))
    other = torch.randn(3, 3, 128, 160)
    with torch.no_grad():
        assert torch.allclose(exported.module()(other), model(other), atol=1e-5)


@pytest.mark.slow
@KINDS
def test_inductor(config: SegmenterConfig) -> None:
    torch.compiler.reset()
    model = Segmenter(config).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(torch.compile(model)(image), model(image), atol=1e-4)
