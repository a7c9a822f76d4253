"""`metaformer list --detectors`; the other lists are tested with the whole command line."""

import json

import pytest

from metaformer.cli.listing import run
from metaformer.errors import UnknownName

PUBLISHED = [
    ("retinanet_poolformer_s12.sail_coco_1x", 21.7, 36.2, None),
    ("retinanet_poolformer_s24.sail_coco_1x", 31.1, 38.9, None),
    ("retinanet_poolformer_s36.sail_coco_1x", 40.6, 39.5, None),
    ("mask_rcnn_poolformer_s12.sail_coco_1x", 31.6, 37.3, 34.6),
    ("mask_rcnn_poolformer_s24.sail_coco_1x", 41.0, 40.1, 37.0),
    ("mask_rcnn_poolformer_s36.sail_coco_1x", 50.5, 41.0, 37.7),
]


def test_published_detectors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--detectors", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    listed = [(r["detector"], round(r["params"] / 1e6, 1), r["box_ap"], r["mask_ap"]) for r in rows]
    assert listed == PUBLISHED
    assert run(["--detectors", "retinanet*s12"]) == 0
    table = capsys.readouterr().out
    assert "21.7M" in table and "36.2" in table and "mask_rcnn" not in table


def test_no_such_detector() -> None:
    with pytest.raises(UnknownName, match="unknown detector 'yolo'"):
        run(["--detectors", "yolo"])
