"""Renaming between the formats, on the originals' own states and on networks of every kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.errors import UnknownName, WeightsError
from metaformer.factory import model_config
from metaformer.models.build import build_network
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.weights.formats import FORMATS, POINTWISE
from metaformer.weights.keymap import Positions, from_ours, recognize, to_ours
from metaformer.weights.sources import SOURCES
from toys import equal_states

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.safetensors"))
ORIGINAL = {
    "poolformer": "poolformer",
    "poolformer_pool5_layernorm_nols": "poolformer",
    "metaformer_ppaf": "poolformer",
    "cyclemlp": "cyclemlp",
}


def state_of(path: Path) -> dict[str, Tensor]:
    vectors = load_file(path)
    return {name.removeprefix("state."): v for name, v in vectors.items() if name.startswith("state.")}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_originals_come_back_as_they_were(path: Path) -> None:
    state = state_of(path)
    renamed = to_ours(state)
    assert renamed.format == ORIGINAL.get(path.stem, "baselines") and not renamed.unknown
    assert equal_states(from_ours(renamed.state, renamed.format), state)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_either_holds_all_or_refuses(path: Path, name: str) -> None:
    ours = to_ours(state_of(path)).state
    if name == "huggingface_base":
        ours = {key: value for key, value in ours.items() if not key.startswith("head.")}
    try:
        theirs = from_ours(ours, name)
    except WeightsError as error:
        assert "no place" in str(error)
        return
    back = to_ours(theirs, name)
    assert equal_states(back.state, ours) and not back.unknown
    assert recognize(theirs) in (name, "timm")


def test_poolformer_fits_all_its_formats() -> None:
    ours = to_ours(state_of(next(path for path in GOLDEN if path.stem == "poolformer"))).state
    for name in ("poolformer", "huggingface", "mmpretrain", "timm", "metaformer"):
        assert equal_states(to_ours(from_ours(ours, name)).state, ours)


def test_mmpretrain_keeps_the_final_norm_as_norm6() -> None:
    ours = to_ours(state_of(next(path for path in GOLDEN if path.stem == "poolformer"))).state
    theirs = from_ours(ours, "mmpretrain")
    assert torch.equal(theirs["backbone.norm6.weight"], ours["head.norm.weight"])
    assert {key.split(".")[0] for key in theirs} == {"backbone", "head"}


def test_dense_files_keep_a_norm_for_each_level() -> None:
    state = state_of(next(path for path in GOLDEN if path.stem == "poolformer"))
    dense = {f"backbone.{k}": v for k, v in state.items() if not k.startswith(("norm", "head"))}
    dense |= {f"backbone.norm{i}.weight": torch.full((2,), float(i)) for i in (0, 2, 4, 6)}
    dense |= {"neck.fpn_convs.0.conv.weight": torch.ones(1), "decode_head.conv_seg.bias": torch.ones(1)}
    renamed = to_ours(dense)
    assert renamed.format == "openmmlab" and not renamed.unknown
    assert [float(renamed.state[f"norms.{i}.weight"][0]) for i in range(4)] == [0, 2, 4, 6]
    assert renamed.ignored == ["neck.fpn_convs.0.conv.weight", "decode_head.conv_seg.bias"]


def test_position_embeddings_shift_the_original_indices() -> None:
    state = {
        "patch_embed.proj.weight": torch.ones(1),
        "network.0.0.norm1.weight": torch.full((1,), 0.0),
        "network.1.proj.weight": torch.ones(1),
        "network.2.pos_embed": torch.ones(1),
        "network.3.0.norm1.weight": torch.full((1,), 1.0),
        "network.4.0.norm1.weight": torch.full((1,), 2.0),  # no downsampling between stages 1 and 2
        "network.5.proj.weight": torch.ones(1),
        "network.6.0.norm1.weight": torch.full((1,), 3.0),
    }
    ours = to_ours(state).state
    assert [float(ours[f"stages.{i}.blocks.0.norm1.weight"]) for i in range(4)] == [0, 1, 2, 3]
    assert {"stages.1.pos_embed.weight", "stages.3.downsample.conv.weight"} <= set(ours)
    assert equal_states(from_ours(ours, "poolformer"), state)


def test_offsets_are_made_anew_for_other_kernels() -> None:
    product = torch.ones(7, 7, 1, 1)
    ours = {f"stages.0.blocks.0.token_mixer.{part}.weight": product for part in ("sfc_h", "mlp_c")}
    ours["stem.conv.weight"] = product
    offset = from_ours(ours, "cyclemlp", kernel=5)["network.0.0.attn.sfc_h.offset"]
    assert offset.shape == (1, 14, 1, 1)
    assert offset.flatten()[1::2].tolist() == [0, 1, 2, -2, -1, 0, 1]
    assert not offset.flatten()[::2].any()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappings_are_taken_off(prefix: str) -> None:
    state = state_of(GOLDEN[0])
    assert equal_states(
        to_ours({prefix + key: value for key, value in state.items()}).state, to_ours(state).state
    )


def test_our_own_names_stay() -> None:
    state = MetaFormer(model_config("metaformer_ppaa_s12", dims=(32,) * 4, depths=(1,) * 4)).state_dict()
    renamed = to_ours(state)
    assert renamed.format == "metaformer" and equal_states(renamed.state, state)


def test_unknown_keys_and_formats() -> None:
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight"):
        to_ours({"layer1.0.conv1.weight": torch.ones(1)})
    with pytest.raises(UnknownName, match="huggingface"):
        from_ours({}, "huggingfaces")
    stem, norm = {"patch_embed.proj.weight": torch.ones(1)}, torch.ones(1)
    with pytest.raises(WeightsError, match=r"both mean stages\.0\.blocks\.0\.norm1\.weight"):
        to_ours(stem | {"network.0.0.norm1.weight": norm, "network.00.0.norm1.weight": norm})


@pytest.mark.parametrize("name", FORMATS)
def test_tables_are_well_formed(name: str) -> None:
    form = FORMATS[name]
    assert form.title and form.signs and form.rules
    theirs = [rule[0] for rule in form.rules]
    assert len(theirs) == len(set(theirs)), "a rule that is never reached"
    for template, ours in form.rules:
        assert ours is None or ("{block}" in template) == ("{block}" in ours)
    assert set(form.matrices) <= set(POINTWISE)


def test_every_published_file_has_a_format() -> None:
    assert {source.format for source in SOURCES.values()} <= set(FORMATS)


@pytest.mark.parametrize("name", ["poolformer_s12", "metaformer_ppaa_s12", "cyclemlp_b1"])
def test_both_ways_agree(name: str) -> None:
    config = model_config(name, depths=(1,) * 4, dims=(32,) * 4, image_size=(64, 64))
    state = MetaFormer(config).state_dict()
    form = "cyclemlp" if name.startswith("cyclemlp") else "poolformer"
    ours, theirs = Positions.of_ours(state), Positions.of_foreign(from_ours(state, form))
    assert ours.blocks == theirs.blocks
    for stage in range(4):
        for kind in ("net", "down", "pos"):
            position = ours.position(kind, stage)
            if position is not None:
                assert theirs.stage(kind, position) == stage and theirs.fits(kind, position)


@given(st.integers(1, 6), st.integers(6, 9))
def test_outputs_beyond_a_pyramids_levels(levels: int, number: int) -> None:
    theirs = Positions.of_foreign(
        f"neck.lateral_convs.{i}.conv.{part}" for i in range(levels) for part in "wb"
    )
    ours = Positions.of_ours(f"neck.laterals.{i}.weight" for i in range(levels))
    assert theirs.levels == ours.levels == levels
    place = ours.position("extra", number)
    assert place is not None and place >= levels
    assert theirs.stage("extra", place) == number and theirs.fits("extra", place)
    assert not theirs.fits("extra", levels - 1)


TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CYCLE = replace(TINY, mixers="cycle_mlp", norm="layer_norm", layer_scale=(None,) * 4)
FPN = SegmenterConfig(backbone=TINY, num_classes=7, fpn_dim=12, head_dim=6)
DETECTOR = DetectorConfig(backbone=TINY, num_classes=7, fpn_dim=12, box_fc_dim=10)
DENSE: dict[str, Any] = {
    "semantic_fpn": FPN,
    "upernet": replace(FPN, kind="upernet", auxiliary=True),
    **{kind: replace(DETECTOR, kind=kind) for kind in KINDS},
}
PARTS = {
    "semantic_fpn": {"backbone", "neck", "decode_head"},
    "upernet": {"backbone", "decode_head", "auxiliary_head"},
    "retinanet": {"backbone", "neck", "bbox_head"},
    "faster_rcnn": {"backbone", "neck", "rpn_head", "roi_head"},
    "mask_rcnn": {"backbone", "neck", "rpn_head", "roi_head"},
}
NAMES = {
    "semantic_fpn": {
        *("backbone.norm6.weight", "neck.lateral_convs.3.conv.bias", "neck.fpn_convs.0.conv.weight"),
        *("decode_head.scale_heads.3.4.bn.running_var", "decode_head.scale_heads.2.2.conv.weight"),
        "decode_head.conv_seg.bias",
    },
    "upernet": {
        *("decode_head.psp_modules.3.1.conv.weight", "decode_head.bottleneck.bn.weight"),
        *("decode_head.lateral_convs.2.conv.weight", "decode_head.fpn_convs.2.bn.num_batches_tracked"),
        *("decode_head.fpn_bottleneck.conv.weight", "auxiliary_head.convs.0.conv.weight"),
        "auxiliary_head.conv_seg.weight",
    },
    "retinanet": {
        *("backbone.norm0.weight", "backbone.norm6.weight", "neck.lateral_convs.2.conv.bias"),
        *("neck.fpn_convs.2.conv.weight", "neck.fpn_convs.3.conv.weight", "neck.fpn_convs.4.conv.bias"),
        *("bbox_head.cls_convs.3.conv.weight", "bbox_head.reg_convs.0.conv.bias"),
        *("bbox_head.retina_cls.bias", "bbox_head.retina_reg.weight"),
    },
    "faster_rcnn": {
        *("neck.fpn_convs.3.conv.weight", "rpn_head.rpn_conv.weight", "rpn_head.rpn_cls.bias"),
        *("rpn_head.rpn_reg.weight", "roi_head.bbox_head.shared_fcs.0.weight"),
        *("roi_head.bbox_head.shared_fcs.1.bias", "roi_head.bbox_head.fc_cls.weight"),
        "roi_head.bbox_head.fc_reg.bias",
    },
    "mask_rcnn": {
        *("roi_head.mask_head.convs.3.conv.weight", "roi_head.mask_head.upsample.weight"),
        "roi_head.mask_head.conv_logits.bias",
    },
}
"""Some of the names that mmsegmentation and mmdetection give."""


def theirs_and_ours(head: str) -> tuple[str, str]:
    return ("mmdetection", "detector") if head in KINDS else ("mmsegmentation", "segmenter")


@pytest.mark.parametrize("backbone", [TINY, CYCLE, replace(TINY, feature_norm="none")])
@pytest.mark.parametrize("head", DENSE)
def test_dense_networks_both_ways(head: str, backbone: MetaFormerConfig) -> None:
    state = build_network(replace(DENSE[head], backbone=backbone)).state_dict()
    form, own = theirs_and_ours(head)
    theirs = from_ours(state, form)
    assert {key.split(".")[0] for key in theirs} == PARTS[head]
    back = to_ours(theirs)
    assert back.format == form and back.dense and not back.unknown and set(back.state) == set(state)
    assert all(torch.equal(back.state[name].reshape(state[name].shape), state[name]) for name in state)
    assert set(from_ours(back.state, form)) == set(theirs)
    renamed = to_ours(state)
    assert renamed.format == own and renamed.dense
    assert set(renamed.state) == set(state) == set(from_ours(state, own))
    names = {name.removeprefix("backbone.") for name in state if name.startswith("backbone.")}
    assert set(renamed.backbone().state) == set(back.backbone().state) == names


@pytest.mark.parametrize("head", DENSE)
def test_names_are_theirs(head: str) -> None:
    form, _ = theirs_and_ours(head)
    theirs = from_ours(build_network(DENSE[head]).state_dict(), form)
    assert theirs.keys() >= NAMES[head]
    if head == "retinanet":  # P6 is made of the last features
        assert theirs["neck.fpn_convs.3.conv.weight"].shape == (12, 28, 3, 3)
    assert any("neck.fpn_convs.4" in key for key in theirs) == (head == "retinanet")


def test_the_backbone_alone() -> None:
    network = build_network(FPN)
    state = from_ours(network.state_dict(), "mmsegmentation") | {"decode_head.strange": torch.ones(1)}
    renamed = to_ours(state)
    assert renamed.unknown == ["decode_head.strange"]
    alone = renamed.backbone()
    assert set(alone.state) == set(network.backbone.state_dict()) and not alone.unknown
    assert alone.origin["stem.conv.weight"] == "backbone.patch_embed.proj.weight"
    assert {"decode_head.strange", "neck.fpn_convs.0.conv.bias"} <= set(alone.ignored)


@pytest.mark.parametrize(
    ("config", "forms", "message"),
    [
        (FPN, ("huggingface_upernet", "metaformer", "mmdetection", "detector"), "format '{form}'"),
        (DETECTOR, ("mmsegmentation", "metaformer", "segmenter"), "format '{form}'"),
        (
            replace(FPN, backbone=replace(TINY, embed_norm="layer_norm")),
            ("mmsegmentation",),
            r"backbone\.stem\.norm\.weight has no place",
        ),
    ],
)
def test_what_a_format_cannot_hold(config: Any, forms: tuple[str, ...], message: str) -> None:
    state = build_network(config).state_dict()
    for form in forms:
        with pytest.raises(WeightsError, match=message.format(form=form)):
            from_ours(state, form)
