"""The table of published detectors."""

import pytest

from metaformer.backbones.variants import VARIANTS
from metaformer.errors import UnknownName, WeightsError
from metaformer.models.detection.config import KINDS
from metaformer.weights.detection_sources import DETECTION_SOURCES, find_detection_source
from metaformer.weights.formats import FORMATS

PUBLISHED = {
    "retinanet_poolformer_s12": (36.2, None),
    "retinanet_poolformer_s24": (38.9, None),
    "retinanet_poolformer_s36": (39.5, None),
    "mask_rcnn_poolformer_s12": (37.3, 34.6),
    "mask_rcnn_poolformer_s24": (40.1, 37.0),
    "mask_rcnn_poolformer_s36": (41.0, 37.7),
}
"""AP of boxes and masks on COCO's validation images, as the README of PoolFormer's detection prints it."""


def test_the_six_published_files() -> None:
    found = {s.model: (s.box_ap[0], s.mask_ap[0] if s.mask_ap else None) for s in DETECTION_SOURCES.values()}
    assert found == PUBLISHED
    assert len({source.url for source in DETECTION_SOURCES.values()}) == 6
    assert len({source.file for source in DETECTION_SOURCES.values()}) == 6


@pytest.mark.parametrize("name", DETECTION_SOURCES)
def test_rows_are_well_formed(name: str) -> None:
    source = DETECTION_SOURCES[name]
    assert source.name == name and source.kind in KINDS
    assert source.backbone in VARIANTS and source.format in FORMATS
    assert source.url.startswith("https://") and source.file == f"{source.model}_fpn_1x_coco.pth"
    mean, half, strict, *by_size = source.box_ap
    assert half > strict > mean and by_size == sorted(by_size) and len(by_size) in (0, 3)
    card = source.pretrained_cfg()
    assert card["num_classes"] == 80 and card["data"] == "coco" and card["input_size"] == (3, 800, 1333)


def test_names() -> None:
    name = "mask_rcnn_poolformer_s24"
    source = find_detection_source(name)
    assert source is find_detection_source(name, "sail_coco_1x") and source.name == f"{name}.sail_coco_1x"
    with pytest.raises(UnknownName, match="did you mean sail_coco_1x"):
        find_detection_source(name, "sail_coco_3x")
    with pytest.raises(
        WeightsError, match=r"retinanet_cyclemlp_b1: no weights were published.*backbone_pret"
    ):
        find_detection_source("retinanet_cyclemlp_b1")
