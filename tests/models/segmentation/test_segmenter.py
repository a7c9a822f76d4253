"""Segmenters, their configuration and heads."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import FeatureInfo
from metaformer.backbones.stage import Recompute
from metaformer.errors import ConfigError, SizeError, UnknownName
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.layers import Classifier, ConvNorm, FCNHead, resize
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.models.segmentation.semantic_fpn import SemanticFPNHead
from metaformer.models.segmentation.upernet import UperNetHead

TINY_BACKBONE = MetaFormerConfig(depths=(1,) * 4, dims=(8, 8, 8, 8), feature_norm="fresh")
CONFIG = SegmenterConfig(backbone=TINY_BACKBONE, num_classes=7, head_dim=16, auxiliary=True)


def test_json_round_trip() -> None:
    for config in (CONFIG, replace(CONFIG, kind="upernet", head_dim=None)):
        assert SegmenterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_published_head_channels() -> None:
    assert SegmenterConfig().head_channels == 128 and SegmenterConfig(kind="upernet").head_channels == 512
    assert CONFIG.head_channels == 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 0),
        ("num_classes", True),
        ("fpn_dim", None),
        ("head_dim", -1),
        ("head_dim", 1.5),
        ("dropout", 1.0),
        ("dropout", "much"),
        ("auxiliary", 1),
        ("backbone", "poolformer_s12"),
    ],
)
def test_wrong_values_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        replace(CONFIG, **{field: value})


def test_unknown_kinds_and_fields() -> None:
    with pytest.raises(UnknownName, match="did you mean upernet"):
        SegmenterConfig(kind="uppernet")
    with pytest.raises(UnknownName, match="did you mean head_dim"):
        SegmenterConfig.from_dict({**CONFIG.to_dict(), "head_dims": 3})
    with pytest.raises(ConfigError, match=r"^backbone: "):
        SegmenterConfig.from_dict({"kind": "upernet"})


def test_module_backbone_is_not_saved() -> None:
    with pytest.raises(ConfigError, match=r"^backbone: "):
        SegmenterConfig().to_dict()


def test_conv_norm_is_convolution_without_bias_norm_and_relu() -> None:
    layer = ConvNorm(3, 4, 3).eval()
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(layer(x), layer.norm(layer.conv(x)).clamp(min=0)) and layer.conv.bias is None
    assert layer.norm.eps == 1e-5 and layer.norm.momentum == 0.1


def test_classifier_initialization() -> None:
    classifier = Classifier(64, 150)
    assert 0.009 < float(classifier.weight.detach().std()) < 0.011 and not classifier.bias.any()


def test_resize() -> None:
    x = torch.randn(1, 2, 3, 5)
    assert resize(x, (3, 5)) is x
    assert torch.equal(resize(x, (6, 10)), F.interpolate(x, scale_factor=2, mode="bilinear"))


def test_fcn_head_is_one_convolution_and_a_classifier() -> None:
    head = FCNHead(8, 6, 5, 0.1).eval()
    x = torch.randn(2, 8, 4, 7)
    assert torch.equal(head(x), head.classifier(head.conv(x))) and head(x).shape == (2, 5, 4, 7)


def test_semantic_fpn_has_one_convolution_per_doubling() -> None:
    head = SemanticFPNHead(12, (4, 8, 16, 32), 6, 5, 0.1)
    assert [len(convs) for convs in head.scales] == [1, 1, 2, 3]
    assert head.scales[3][0].conv.in_channels == 12 and head.scales[3][1].conv.in_channels == 6


def test_semantic_fpn_on_levels_of_equal_size() -> None:
    head = SemanticFPNHead(12, (4, 8, 16, 16), 6, 5, 0.1).eval()
    assert [len(convs) for convs in head.scales] == [1, 1, 2, 2]
    assert head([torch.randn(1, 12, size, size) for size in (16, 8, 4, 4)]).shape == (1, 5, 16, 16)


def test_dropout_zeroes_whole_channels_in_training_only() -> None:
    head = SemanticFPNHead(4, (4,), 64, 5, 0.5)
    inputs: list[torch.Tensor] = []
    head.classifier.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    levels = [torch.randn(2, 4, 8, 8)]
    head.train()(levels)
    assert 0.2 < float((inputs[0] == 0).all((2, 3)).float().mean()) < 0.8
    head.eval()(levels)
    assert torch.equal(inputs[1], head.features(levels))


def test_upernet_at_any_size() -> None:
    head = UperNetHead((8, 12, 16), 6, 5, 0.1).eval()
    for sizes in ([(16, 16), (8, 8), (4, 4)], [(13, 7), (7, 4), (4, 2)], [(1, 1)] * 3):
        features = [torch.randn(1, dim, *size) for dim, size in zip((8, 12, 16), sizes, strict=True)]
        with torch.no_grad():
            logits = head(features)
        assert logits.shape == (1, 5, *sizes[0]) and logits.isfinite().all()
    assert UperNetHead((8,), 6, 5, 0.0).eval()([torch.randn(1, 8, 9, 9)]).shape == (1, 5, 9, 9)


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
