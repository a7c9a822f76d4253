"""`TaskSpec` of object detection and instance segmentation: what the rest of the library asks of it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from torch import nn

from metaformer.config import TrainConfig
from metaformer.data.class_lists import category_ids
from metaformer.errors import ConfigError
from metaformer.factory import is_detector
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.detector import Detector
from metaformer.serialize import POSITIVE_INT, PROBABILITY, Range, check_ranges
from metaformer.tasks import dense
from metaformer.tasks.base import LoadedModel, TaskSpec
from metaformer.tasks.check import Certainty
from metaformer.tasks.demo import write_coco_objects
from metaformer.tasks.detection.check import check_objects
from metaformer.tasks.detection.evaluate import build_evaluation
from metaformer.tasks.detection.explain import DetectorExplain
from metaformer.tasks.detection.export import DetectorExport
from metaformer.tasks.detection.formats.layouts import recognize_layout
from metaformer.tasks.detection.metadata import DetectionMetadata, read_ids, read_score
from metaformer.tasks.detection.predict import DetectionPredictor
from metaformer.tasks.detection.report import build_report
from metaformer.tasks.detection.task import build_detect, fit_data
from metaformer.tasks.detection.transforms import DetectionPreprocess
from metaformer.tasks.detection.write import write_detections

RANGES: Final[Mapping[str, Range]] = {
    "detect.fpn_dim": POSITIVE_INT,
    "detect.head_dim": POSITIVE_INT,
    "detect.box_fc_dim": POSITIVE_INT,
    "detect.roi_batch_size": POSITIVE_INT,
    "detect.rpn_pre_nms_topk": POSITIVE_INT,
    "detect.rpn_pre_nms_topk_train": POSITIVE_INT,
    "detect.rpn_post_nms_topk": POSITIVE_INT,
    "detect.anchor_scale": Range(1e-3, 1e3),
    "detect.long_side": POSITIVE_INT,
    "detect.short_sides": POSITIVE_INT,
    "detect.score_threshold": PROBABILITY,
    "detect.nms_threshold": PROBABILITY,
    "detect.max_detections": POSITIVE_INT,
    "detect.scales": Range(0, 100, above=True),
}


def check_config(config: TrainConfig) -> None:
    """Check the values of `detect`.

    Raises:
        ConfigError: the first that is out of range.
    """
    check_ranges(config, RANGES)
    low, high = config.detect.jitter or (1.0, 1.0)
    if not 0 < low <= high <= 100:
        raise ConfigError(
            f"detect.jitter is {config.detect.jitter}: a smaller and a larger factor, above 0 and at most 100"
        )
    for field in ("short_sides", "scales"):
        if not getattr(config.detect, field):
            raise ConfigError(f"detect.{field} is empty: give at least one")


def load(spec: TaskSpec, card: Mapping[str, Any]) -> LoadedModel:
    """A detector from a checkpoint's card, its weights random."""
    model = dense.load(spec, card, DetectorConfig, DetectionPreprocess)
    ids = read_ids(card["category_ids"], model.num_classes)
    score = read_score(card.get("score"))
    return replace(model, metadata=DetectionMetadata(model.metadata, ids, score))


def describe(spec: TaskSpec, model: nn.Module, name: str) -> LoadedModel:
    """A detector with the preprocessing and classes of its `pretrained_cfg`."""
    assert isinstance(model, Detector)
    loaded = dense.describe(spec, model, name, DetectionPreprocess)
    ids = category_ids(loaded.classes or ())
    if "category_ids" in model.pretrained_cfg:
        ids = read_ids(model.pretrained_cfg["category_ids"], model.num_classes)
    score = read_score(model.pretrained_cfg.get("score"))
    return replace(loaded, metadata=DetectionMetadata(loaded.metadata, ids, score))


def recognize(root: str | Path) -> Certainty:
    """How surely a folder holds images with annotated objects."""
    return Certainty.NONE if recognize_layout(root) is None else Certainty.BY_FILES


SPEC = TaskSpec(
    name="detect",
    title="object detection",
    section="detect",
    unused=dense.UNUSED,
    check_config=check_config,
    build=build_detect,
    forward=attrgetter("predict"),
    load=load,
    create=partial(dense.create, is_detector),
    describe=describe,
    evaluation=build_evaluation,
    predictor=DetectionPredictor,
    write=write_detections,
    export=DetectorExport(),
    explain=DetectorExplain(),
    report=build_report,
    fit_data=fit_data,
    check_data=check_objects,
    recognize=recognize,
    write_demo=write_coco_objects,
)
