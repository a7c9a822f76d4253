"""The list of models and its table of costs."""

import json
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.variants import VARIANTS
from metaformer.bench.catalog import catalog, cost, counted, write_table
from metaformer.bench.counts import count
from metaformer.errors import UnknownName
from metaformer.weights.sources import SOURCES

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published.json").read_text())["models"]


def agrees(counted: int, printed: str, unit: int) -> bool:
    """Within 1 %, or equal after rounding to the digits that were printed."""
    digits = -int(Decimal(printed).as_tuple().exponent)
    return abs(counted / unit / float(printed) - 1) <= 0.01 or round(counted / unit, digits) == float(printed)


def test_every_published_model_is_in_the_transcription() -> None:
    assert set(VARIANTS) - set(PUBLISHED) == {"poolformer_n"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    row, (params, _) = PUBLISHED[name], cost(name, 224, 1000)
    if isinstance(row["params"], int):
        assert params == row["params"]
    else:
        total = float(row["params"]) + float(row.get("frozen", 0))
        assert agrees(params, f"{total:.1f}" if "." in row["params"] else row["params"], 10**6)


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name, row in PUBLISHED.items() for size in row["macs"]]
)
def test_multiply_adds_are_the_published_ones(name: str, size: str) -> None:
    assert agrees(cost(name, int(size), 1000)[1], PUBLISHED[name]["macs"][size], 10**9)


@pytest.mark.parametrize(
    ("name", "size"),
    [("poolformer_s12", 224), ("metaformer_ppaa_s12", 224), ("cyclemlp_b1", 224), ("identityformer_s12", 224),
     ("randformer_s12", 224), ("poolformerv2_s12", 224), ("convformer_s18", 384), ("caformer_s18", 384)],
)  # fmt: skip
def test_one_block_per_stage_gives_the_whole_networks_counts(name: str, size: int) -> None:
    with torch.device("meta"):
        network = MetaFormer(replace(VARIANTS[name], image_size=(size, size)))
    counts = count(network, (size, size))
    assert counted(name, size, 1000) == (counts.params, counts.macs)


def test_the_table_in_the_package_is_what_is_counted() -> None:
    text = resources.files("metaformer.bench").joinpath("costs.json").read_text()
    assert text == write_table(), "rewrite bench/costs.json with metaformer.bench.catalog.write_table()"


def test_every_model_and_every_published_checkpoint_is_listed() -> None:
    entries = catalog()
    assert {entry.model for entry in entries} == set(VARIANTS)
    assert {entry.name for entry in entries if entry.tag} == {
        name for name, source in SOURCES.items() if not source.data
    }


def test_figures_follow_size_and_classes() -> None:
    entries = {entry.tag: entry for entry in catalog("convformer_s18")}
    small, large, many = (entries[tag] for tag in ("sail_in1k", "sail_in1k_384", "sail_in22k"))
    assert (small.image_size, large.image_size) == (224, 384)
    assert large.macs > 2.9 * small.macs and large.params == small.params == 26774448
    assert many.num_classes == 21841 and many.params > small.params and many.top1 is None


@pytest.mark.parametrize("pattern", ["caformer", "caformer_*", "caformer_?18"])
def test_filters(pattern: str) -> None:
    found = catalog(pattern)
    assert found and all(entry.family == "caformer" for entry in found)


def test_no_match_offers_near_names() -> None:
    with pytest.raises(UnknownName, match="caformer_s18"):
        catalog("caformr_s18")
