"""The tables of dense heads' names, on whole networks of every shape."""

from dataclasses import replace

import pytest
import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.dense.config import SegmenterConfig
from metaformer.dense.segmenter import Segmenter
from metaformer.errors import WeightsError
from metaformer.weights.keymap import from_ours, to_ours

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CYCLE = replace(TINY, mixers="cycle_mlp", norm="layer_norm", layer_scale=(None,) * 4)
FPN = SegmenterConfig(backbone=TINY, num_classes=7, fpn_dim=12, head_dim=6)
UPERNET = replace(FPN, kind="upernet", auxiliary=True)


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
