"""The tables of dense heads' names, on whole networks of every shape."""

from dataclasses import replace

import pytest
import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import WeightsError
from metaformer.models.detection.build import build_detector
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.weights.keymap import from_ours, to_ours

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CYCLE = replace(TINY, mixers="cycle_mlp", norm="layer_norm", layer_scale=(None,) * 4)
FPN = SegmenterConfig(backbone=TINY, num_classes=7, fpn_dim=12, head_dim=6)
UPERNET = replace(FPN, kind="upernet", auxiliary=True)
DETECTOR = DetectorConfig(backbone=TINY, num_classes=7, fpn_dim=12, box_fc_dim=10)


@pytest.mark.parametrize("config", [FPN, UPERNET, replace(FPN, backbone=CYCLE)], ids=str)
def test_both_ways_through_mmsegmentation(config: SegmenterConfig) -> None:
    state = Segmenter(config).state_dict()
    theirs = from_ours(state, "mmsegmentation")
    assert {key.split(".")[0] for key in theirs} <= {"backbone", "neck", "decode_head", "auxiliary_head"}
    back = to_ours(theirs)
    assert back.format == "mmsegmentation" and not back.unknown and set(back.state) == set(state)
    assert all(torch.equal(back.state[name].reshape(state[name].shape), state[name]) for name in state)


def test_names_are_theirs() -> None:
    fpn = from_ours(Segmenter(FPN).state_dict(), "mmsegmentation")
    assert {
        "backbone.norm6.weight",
        "neck.lateral_convs.3.conv.bias",
        "neck.fpn_convs.0.conv.weight",
        "decode_head.scale_heads.3.4.bn.running_var",
        "decode_head.scale_heads.2.2.conv.weight",
        "decode_head.conv_seg.bias",
    } <= set(fpn)
    upernet = from_ours(Segmenter(UPERNET).state_dict(), "mmsegmentation")
    assert {
        "decode_head.psp_modules.3.1.conv.weight",
        "decode_head.bottleneck.bn.weight",
        "decode_head.lateral_convs.2.conv.weight",
        "decode_head.fpn_convs.2.bn.num_batches_tracked",
        "decode_head.fpn_bottleneck.conv.weight",
        "auxiliary_head.convs.0.conv.weight",
        "auxiliary_head.conv_seg.weight",
    } <= set(upernet)


def test_what_the_others_cannot_hold() -> None:
    with pytest.raises(WeightsError, match="no place in the format 'huggingface_upernet'"):
        from_ours(Segmenter(FPN).state_dict(), "huggingface_upernet")
    with pytest.raises(WeightsError, match="no place in the format 'metaformer'"):
        from_ours(Segmenter(FPN).state_dict(), "metaformer")
    normed = replace(FPN, backbone=replace(TINY, embed_norm="layer_norm"))
    with pytest.raises(WeightsError, match=r"backbone\.stem\.norm\.weight has no place"):
        from_ours(Segmenter(normed).state_dict(), "mmsegmentation")


def test_our_own_names_stay() -> None:
    state = Segmenter(UPERNET).state_dict()
    renamed = to_ours(state)
    assert renamed.format == "segmenter" and renamed.dense
    assert set(renamed.state) == set(state) == set(from_ours(state, "segmenter"))


def test_the_backbone_alone() -> None:
    state = from_ours(Segmenter(FPN).state_dict(), "mmsegmentation") | {"decode_head.strange": torch.ones(1)}
    renamed = to_ours(state)
    assert renamed.unknown == ["decode_head.strange"]
    alone = renamed.backbone()
    assert set(alone.state) == set(Segmenter(FPN).backbone.state_dict()) and not alone.unknown
    assert alone.origin["stem.conv.weight"] == "backbone.patch_embed.proj.weight"
    assert {"decode_head.strange", "neck.fpn_convs.0.conv.bias"} <= set(alone.ignored)


@pytest.mark.parametrize("backbone", [TINY, CYCLE, replace(TINY, feature_norm="none")])
@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_through_mmdetection(kind: str, backbone: MetaFormerConfig) -> None:
    state = build_detector(replace(DETECTOR, kind=kind, backbone=backbone)).state_dict()
    theirs = from_ours(state, "mmdetection")
    assert {key.split(".")[0] for key in theirs} <= {
        *("backbone", "neck"),
        *(("bbox_head",) if kind == "retinanet" else ("rpn_head", "roi_head")),
    }
    back = to_ours(theirs)
    assert back.format == "mmdetection" and back.dense and not back.unknown
    assert set(back.state) == set(state)
    assert all(torch.equal(back.state[name].reshape(state[name].shape), state[name]) for name in state)
    assert set(from_ours(back.state, "mmdetection")) == set(theirs)


def test_names_of_detectors_are_theirs() -> None:
    retinanet = from_ours(build_detector(DETECTOR).state_dict(), "mmdetection")
    assert {
        "backbone.norm6.weight",
        "neck.lateral_convs.2.conv.bias",
        "neck.fpn_convs.2.conv.weight",
        "neck.fpn_convs.3.conv.weight",
        "neck.fpn_convs.4.conv.bias",
        "bbox_head.cls_convs.3.conv.weight",
        "bbox_head.reg_convs.0.conv.bias",
        "bbox_head.retina_cls.bias",
        "bbox_head.retina_reg.weight",
        "backbone.norm0.weight",
    } <= set(retinanet)
    assert retinanet["neck.fpn_convs.3.conv.weight"].shape == (12, 28, 3, 3)
    rcnn = from_ours(build_detector(replace(DETECTOR, kind="mask_rcnn")).state_dict(), "mmdetection")
    assert {
        "neck.fpn_convs.3.conv.weight",
        "rpn_head.rpn_conv.weight",
        "rpn_head.rpn_cls.bias",
        "rpn_head.rpn_reg.weight",
        "roi_head.bbox_head.shared_fcs.0.weight",
        "roi_head.bbox_head.shared_fcs.1.bias",
        "roi_head.bbox_head.fc_cls.weight",
        "roi_head.bbox_head.fc_reg.bias",
        "roi_head.mask_head.convs.3.conv.weight",
        "roi_head.mask_head.upsample.weight",
        "roi_head.mask_head.conv_logits.bias",
    } <= set(rcnn)
    assert not any("neck.fpn_convs.4" in key for key in rcnn)


def test_our_own_names_of_detectors_stay() -> None:
    for kind in KINDS:
        state = build_detector(replace(DETECTOR, kind=kind)).state_dict()
        renamed = to_ours(state)
        assert renamed.format == "detector" and renamed.dense
        assert set(renamed.state) == set(state) == set(from_ours(state, "detector"))
        assert set(renamed.backbone().state) == {
            name.removeprefix("backbone.") for name in state if name.startswith("backbone.")
        }


def test_what_mmdetection_cannot_hold() -> None:
    for form in ("mmsegmentation", "metaformer", "segmenter"):
        with pytest.raises(WeightsError, match="no place in the format"):
            from_ours(build_detector(DETECTOR).state_dict(), form)
    for form in ("mmdetection", "detector"):
        with pytest.raises(WeightsError, match="no place in the format"):
            from_ours(Segmenter(FPN).state_dict(), form)
