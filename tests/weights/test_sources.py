"""Published weights: the table, cards, and which network a state is of."""

import math

import pytest
import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.variants import UNAVAILABLE, VARIANTS
from metaformer.errors import UnknownName, WeightsError
from metaformer.factory import is_detector, is_model, is_segmenter
from metaformer.models.build import DENSE_KINDS, NetworkConfig, build_network
from metaformer.weights.card import pretrained_cfg
from metaformer.weights.formats import FORMATS
from metaformer.weights.infer import candidates
from metaformer.weights.sources import ALIASES, SOURCES, find_source, split_name, tags

UNPUBLISHED = {"poolformer_n"}
IMAGENET = {name: source for name, source in SOURCES.items() if not source.data}
METRICS = {
    **dict(
        zip(
            (f"semantic_fpn_poolformer_{size}" for size in ("s12", "s24", "s36", "m36", "m48")),
            ({"miou": miou} for miou in (37.07, 40.36, 41.81, 42.35, 42.76)),
            strict=True,
        )
    ),
    "retinanet_poolformer_s12": {"box_ap": 36.2, "box_ap_large": 48.0},
    "retinanet_poolformer_s24": {"box_ap": 38.9, "box_ap_small": 23.3},
    "retinanet_poolformer_s36": {"box_ap": 39.5, "box_ap75": 41.8},
    "mask_rcnn_poolformer_s12": {"box_ap": 37.3, "mask_ap": 34.6},
    "mask_rcnn_poolformer_s24": {"box_ap": 40.1, "mask_ap": 37.0},
    "mask_rcnn_poolformer_s36": {"box_ap": 41.0, "mask_ap75": 40.0},
}
"""mIoU of mmsegmentation's README, sides rounded up to multiples of 32; AP of PoolFormer's own."""


def test_every_published_variant_has_weights_and_every_source_a_network() -> None:
    assert {source.model for source in IMAGENET.values()} == set(VARIANTS) - UNPUBLISHED
    for name, source in SOURCES.items():
        assert source.name == name and (is_model(name) or is_segmenter(name) or is_detector(name))


def test_files_are_distinct_and_formats_known() -> None:
    sources = SOURCES.values()
    assert len({source.url for source in sources}) == len({source.file for source in sources}) == len(SOURCES)
    for source in sources:
        assert source.format in FORMATS
        assert source.url.startswith("https://")
        assert source.sha256 in source.url
        assert ("top1" not in source.metrics) == (source.num_classes == 21841 or bool(source.data))


def test_counts() -> None:
    """5 PoolFormers in three places, 5 hybrids, CycleMLP B1 to B5, 55 baselines (official.md), 36 of timm."""
    assert len(IMAGENET) == 15 + 5 + 5 + 55 + 36 and len(SOURCES) - len(IMAGENET) == len(METRICS) == 11


@pytest.mark.parametrize("model", METRICS)
def test_rows_of_dense_networks(model: str) -> None:
    source = find_source(model)
    assert source is find_source(f"{model}.{source.tag}") and METRICS[model].items() <= source.metrics.items()
    metrics = source.metrics
    if source.data == "ade20k":
        assert source.file.endswith(f"-{source.sha256}.pth") and source.file.startswith("fpn_poolformer_")
        assert source.num_classes == 150 and metrics["miou_unrounded"] < metrics["miou"]
        assert abs(metrics["miou_paper"] - metrics["miou"]) < 0.5
    else:
        assert (source.data, source.num_classes, source.image_size) == ("coco", 80, (800, 1333))
        assert source.file == f"{model}_fpn_1x_coco.pth" and ("mask_ap" in metrics) == ("mask" in model)
        for of in ("box", "mask") if "mask" in model else ("box",):
            assert metrics[f"{of}_ap50"] > metrics[f"{of}_ap75"] > metrics[f"{of}_ap"]


@pytest.mark.parametrize(
    ("original", "name"),
    [
        ("caformer_s18_384_in21ft1k", "caformer_s18.sail_in22k_ft_in1k_384"),
        ("convformer_b36_in21k", "convformer_b36.sail_in22k"),
        ("caformer_m36_in21ft1k", "caformer_m36.sail_in22k_ft_in1k"),
        ("convformer_m36_384", "convformer_m36.sail_in1k_384"),
        ("metaformer_ppaa_s12_224", "metaformer_ppaa_s12.sail_in1k"),
        ("CycleMLP_B3", "cyclemlp_b3.in1k"),
        ("randformer_m48", "randformer_m48.sail_in1k"),
        ("poolformer_s12", "poolformer_s12.sail_in1k"),
    ],
)
def test_original_names_are_understood(original: str, name: str) -> None:
    assert find_source(original).name == name


def test_aliases_lead_somewhere_and_hide_no_variant() -> None:
    assert not set(ALIASES) & set(VARIANTS)
    assert all(split_name(alias)[0] in {**VARIANTS, **UNAVAILABLE} for alias in ALIASES)


def test_tags_and_preprocessing_are_timms() -> None:
    import timm

    names = [name for name in timm.list_models(pretrained=True) if name in SOURCES]
    assert len(names) == 50 + 36
    for name in names:
        variant = name.partition(".")[0]
        theirs, ours = (
            timm.get_pretrained_cfg(name),
            pretrained_cfg(variant, VARIANTS[variant], SOURCES[name]),
        )
        for field in ("num_classes", "input_size", "crop_pct", "interpolation", "mean", "std", "license"):
            assert getattr(theirs, field) == ours[field], f"{name}: {field}"


def test_resizes_are_the_published_ones() -> None:
    """Shorter edge before the crop of 224: 248, 235 (mmpretrain 236), CycleMLP 256, baselines none."""
    edges = {name: math.floor(source.image_size[0] / source.crop_pct) for name, source in IMAGENET.items()}
    assert edges["poolformer_s12.sail_in1k"] == edges["poolformer_s12.mmpretrain_in1k"] == 248
    assert edges["poolformer_m36.sail_in1k"] == 235 and edges["poolformer_m36.mmpretrain_in1k"] == 236
    assert edges["cyclemlp_b5.in1k"] == 256 and edges["caformer_b36.sail_in1k_384"] == 384


def test_unknown_weights() -> None:
    for name, near in (
        ("poolformer_s12.sail_in2k", "sail_in1k"),
        ("semantic_fpn_poolformer_s24.mmseg_ade", "mmseg_ade20k"),
        ("mask_rcnn_poolformer_s24.sail_coco_3x", "sail_coco_1x"),
    ):
        with pytest.raises(UnknownName, match=f"did you mean .*{near}"):
            find_source(name)
    for name in ("poolformer_n", "upernet_poolformer_s24", "retinanet_cyclemlp_b1"):
        with pytest.raises(WeightsError, match=f"{name}: .*backbone_pretrained"):
            find_source(name)
    assert tags("poolformer_n") == []


NETWORKS: dict[str, NetworkConfig] = {
    **VARIANTS,
    **{
        f"{head}_poolformer_s12": kind.config(kind=head, backbone=VARIANTS["poolformer_s12"], num_classes=7)
        for kind in DENSE_KINDS
        for head in kind.heads
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_cards_name_layers_that_exist(name: str) -> None:
    config = NETWORKS[name]
    card = pretrained_cfg(name, config, None)
    with torch.device("meta"):
        model = build_network(config)
    assert model.get_submodule(card["classifier"]) and model.get_submodule(card["first_conv"])
    assert card["num_classes"] == config.num_classes and card["url"] == "" and "data" not in card
    assert card.get("pool_size") == ((7, 7) if isinstance(config, MetaFormerConfig) else None)


def test_published_weights_fill_the_card() -> None:
    source = SOURCES["caformer_b36.sail_in22k_ft_in1k_384"]
    card = pretrained_cfg("caformer_b36", VARIANTS["caformer_b36"], source)
    assert card["pool_size"] == (12, 12)
    assert card["input_size"] == (3, 384, 384) and card["tag"] == source.tag and card["crop_pct"] == 1.0
    source = SOURCES["mask_rcnn_poolformer_s12.sail_coco_1x"]
    card = pretrained_cfg(source.model, NETWORKS[source.model], source)
    assert card["url"] == source.url and card["data"] == "coco" and card["num_classes"] == 80
    assert card["input_size"] == (3, 800, 1333) and "crop_pct" not in card


TWINS = [
    {"poolformer_s12", "metaformer_id_s12"},
    *({f"identityformer_{size}", f"poolformerv2_{size}"} for size in ("s12", "s24", "s36", "m36", "m48")),
]
"""Networks that differ in a mixer without weights only."""


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_recognized(name: str) -> None:
    with torch.device("meta"):
        state = MetaFormer(VARIANTS[name]).state_dict()
    assert set(candidates(state)) == next((twins for twins in TWINS if name in twins), {name})


def test_other_states_are_none() -> None:
    assert candidates({}) == []
    assert candidates({"stages.0.blocks.0.mlp.fc1.weight": torch.ones(4, 2, 1, 1)}) == []
    assert candidates({"stages.x.blocks.y.mlp.fc1.weight": torch.ones(4)}) == []
