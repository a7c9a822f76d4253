"""The table of published segmentation networks."""

import pytest

from metaformer.backbones.variants import VARIANTS
from metaformer.errors import UnknownName, WeightsError
from metaformer.models.segmentation.config import HEAD_DIMS
from metaformer.weights.formats import FORMATS
from metaformer.weights.segmentation_sources import SEGMENTATION_SOURCES, find_segmentation_source

PUBLISHED_MIOU = {"s12": 37.07, "s24": 40.36, "s36": 41.81, "m36": 42.35, "m48": 42.76}
"""mmsegmentation's README, both sides of the image rounded up to multiples of 32."""


def test_the_five_published_files() -> None:
    assert {name: source.miou for name, source in SEGMENTATION_SOURCES.items()} == {
        f"semantic_fpn_poolformer_{size}.mmseg_ade20k": miou for size, miou in PUBLISHED_MIOU.items()
    }
    assert len({source.url for source in SEGMENTATION_SOURCES.values()}) == 5


@pytest.mark.parametrize("name", SEGMENTATION_SOURCES)
def test_rows_are_well_formed(name: str) -> None:
    source = SEGMENTATION_SOURCES[name]
    assert source.kind in HEAD_DIMS and source.backbone in VARIANTS and source.format in FORMATS
    assert source.url.startswith("https://download.openmmlab.com/mmsegmentation/v0.5/poolformer/fpn_")
    assert source.file.endswith(f"-{source.sha256}.pth") and source.file.startswith("fpn_poolformer_")
    assert source.miou_unrounded < source.miou and abs(source.miou_paper - source.miou) < 0.5
    assert source.pretrained_cfg()["num_classes"] == 150


def test_names() -> None:
    name = "semantic_fpn_poolformer_s24"
    source = find_segmentation_source(name)
    assert source is find_segmentation_source(name, "mmseg_ade20k") and source.name == f"{name}.mmseg_ade20k"
    with pytest.raises(UnknownName, match="did you mean mmseg_ade20k"):
        find_segmentation_source(name, "mmseg_ade")
    with pytest.raises(
        WeightsError, match=r"upernet_poolformer_s24: no weights were published.*backbone_pret"
    ):
        find_segmentation_source("upernet_poolformer_s24")
