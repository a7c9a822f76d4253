"""The table of published weights."""

import math

import pytest

from metaformer.backbones.variants import UNAVAILABLE, VARIANTS
from metaformer.errors import UnknownName, WeightsError
from metaformer.weights.formats import FORMATS
from metaformer.weights.sources import ALIASES, SOURCES, find_source, split_name, tags

UNPUBLISHED = {"poolformer_n"}


def test_every_published_variant_has_weights_and_every_source_a_variant() -> None:
    assert {source.model for source in SOURCES.values()} == set(VARIANTS) - UNPUBLISHED


def test_files_are_distinct_and_formats_known() -> None:
    sources = SOURCES.values()
    assert len({source.url for source in sources}) == len({source.file for source in sources}) == len(SOURCES)
    for source in sources:
        assert source.format in FORMATS
        assert source.url.startswith("https://")
        assert source.sha256 in source.url
        assert (source.top1 is None) == (source.num_classes == 21841)


def test_counts() -> None:
    """5 PoolFormers in three places, 5 hybrids, CycleMLP B1 to B5, 55 baselines (official.md)."""
    assert len(SOURCES) == 15 + 5 + 5 + 55


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

    families = ("poolformer", "poolformerv2", "convformer", "caformer")
    names = [name for name in timm.list_models(pretrained=True) if name.startswith(families)]
    assert len(names) == 50
    for name in names:
        theirs, ours = timm.get_pretrained_cfg(name), SOURCES[name].pretrained_cfg()
        for field in ("num_classes", "input_size", "crop_pct", "interpolation", "mean", "std", "license"):
            assert getattr(theirs, field) == ours[field], f"{name}: {field}"


def test_resizes_are_the_published_ones() -> None:
    """Shorter edge before the crop of 224: 248, 235 (mmpretrain 236), CycleMLP 256, baselines none."""
    edges = {name: math.floor(source.image_size / source.crop_pct) for name, source in SOURCES.items()}
    assert edges["poolformer_s12.sail_in1k"] == edges["poolformer_s12.mmpretrain_in1k"] == 248
    assert edges["poolformer_m36.sail_in1k"] == 235 and edges["poolformer_m36.mmpretrain_in1k"] == 236
    assert edges["cyclemlp_b5.in1k"] == 256 and edges["caformer_b36.sail_in1k_384"] == 384


def test_unknown_weights() -> None:
    with pytest.raises(UnknownName, match="sail_in1k"):
        find_source("poolformer_s12.sail_in2k")
    with pytest.raises(WeightsError, match="no weights were published"):
        find_source("poolformer_n")
    assert tags("poolformer_n") == []
