"""Every published checkpoint of a detector: address and average precision, as data."""

from dataclasses import dataclass

from metaformer.weights.dense_source import DenseSource, find_dense_source

DRIVE = "https://drive.usercontent.google.com/download?id={id}&export=download&confirm=t"
"""Where a file of Google Drive comes as it is, without a page in front of it; no hashes were published."""


@dataclass(frozen=True, kw_only=True)
class DetectionSource(DenseSource):
    """One published file of a detector; kinds are those of `metaformer.models.detection.config`."""

    box_ap: tuple[float, ...]
    """Published average precision of boxes in per cent: mean, at IoU .5, at IoU .75; for RetinaNet also of
    small, medium and large objects."""
    mask_ap: tuple[float, ...] = ()
    """… of masks: mean, at IoU .5, at IoU .75."""
    data: str = "coco"
    num_classes: int = 80
    image_size: tuple[int, int] = (800, 1333)

    @property
    def file(self) -> str:
        """The name of the configuration that the file is of; its address has none."""
        return f"{self.model}_fpn_1x_coco.pth"


# kind and size: the file (README of PoolFormer's detection), and average precision (paper, table 3)
POOLFORMER: dict[tuple[str, str], tuple[str, tuple[float, ...], tuple[float, ...]]] = {
    ("retinanet", "s12"): ("1GKx4jbxdO4ClagPXXt7CoomrV4pOpqul", (36.2, 56.2, 38.2, 20.8, 39.1, 48.0), ()),
    ("retinanet", "s24"): ("1EjsWpdopem-xeLndPQnQcHp8aoEUHQXR", (38.9, 59.7, 41.3, 23.3, 42.1, 51.8), ()),
    ("retinanet", "s36"): ("1EgJDCg7LXXnHdGdJaHyEnoBPm-fNG2bt", (39.5, 60.5, 41.8, 22.5, 42.9, 52.4), ()),
    ("mask_rcnn", "s12"): ("1-GSkqaS3SovfCVDsH8CzS1DikPX3cFTY", (37.3, 59.0, 40.1), (34.6, 55.8, 36.9)),
    ("mask_rcnn", "s24"): ("10Br62EU-VErQq6rP67sf4qXJIBLOnmLT", (40.1, 62.2, 43.4), (37.0, 59.1, 39.6)),
    ("mask_rcnn", "s36"): ("1LyJxcO0fw2hwZg9Z--Zbjbw3W7U4JyqT", (41.0, 63.1, 44.8), (37.7, 60.1, 40.0)),
}


def _poolformer(kind: str, size: str) -> DetectionSource:
    file, box_ap, mask_ap = POOLFORMER[kind, size]
    return DetectionSource(
        kind=kind,
        backbone=f"poolformer_{size}",
        tag="sail_coco_1x",
        url=DRIVE.format(id=file),
        format="mmdetection",
        box_ap=box_ap,
        mask_ap=mask_ap,
    )


DETECTION_SOURCES: dict[str, DetectionSource] = {
    source.name: source for source in (_poolformer(*of) for of in POOLFORMER)
}
"""All sources by `kind_backbone.tag`; the first of a network is what its bare name means."""


def find_detection_source(model: str, tag: str = "") -> DetectionSource:
    """The source that a network, with a tag or without, means; see `find_dense_source`."""
    return find_dense_source(DETECTION_SOURCES, model, tag)
