"""`TaskSpec` of object detection and instance segmentation: what the rest of the library asks of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import nn

from metaformer.config import TrainConfig
from metaformer.data.class_lists import Palette, category_ids, read_names, read_palette
from metaformer.errors import ConfigError
from metaformer.factory import create_detector, is_detector
from metaformer.models.build import build_network
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.detector import Detector
from metaformer.serialize import POSITIVE_INT, PROBABILITY, Range, Text, check_ranges, decode
from metaformer.tasks.base import CLASSIFICATION_ONLY, LoadedModel, TaskSpec
from metaformer.tasks.dense import published_classes
from metaformer.tasks.detection.check import check_objects
from metaformer.tasks.detection.demo import write_demo
from metaformer.tasks.detection.evaluate import build_evaluation
from metaformer.tasks.detection.formats.layouts import recognize_layout
from metaformer.tasks.detection.predict import DetectionPredictor
from metaformer.tasks.detection.report import build_report
from metaformer.tasks.detection.task import build_detect
from metaformer.tasks.detection.transforms import DetectionPreprocess
from metaformer.tasks.detection.write import write_detections


class DetectionMetadata(NamedTuple):
    """What a detector's checkpoint says of its classes beside their names."""

    palette: Palette
    """A color for each."""
    category_ids: tuple[int, ...]
    """The id of each in COCO's files."""


RANGES: Final[Mapping[str, Range]] = {
    "detect.fpn_dim": POSITIVE_INT,
    "detect.head_dim": POSITIVE_INT,
    "detect.box_fc_dim": POSITIVE_INT,
    "detect.roi_batch_size": POSITIVE_INT,
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
    model = build_network(DetectorConfig.from_dict(card["model"]))
    preprocess = DetectionPreprocess.from_dict(card["preprocess"])
    classes = read_names(card["classes"], model.num_classes)
    colors, ids = read_palette(card["palette"], len(classes)), read_ids(card["category_ids"], len(classes))
    name = decode(Text, card["name"], "name")
    return LoadedModel(spec, name, model, preprocess, classes, DetectionMetadata(colors, ids))


def read_ids(values: Any, count: int) -> tuple[int, ...]:
    """COCO's category ids from a file's plain values.

    Raises:
        ConfigError: anything but `count` different integers.
    """
    ids: tuple[int, ...] = decode(tuple[int, ...], values, "category_ids")
    if len(ids) != count or len(set(ids)) != count:
        raise ConfigError(f"category_ids: must be {count:,} different integers, one for each class")
    return ids


def create(
    name: str,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    data: tuple[str | Path, str] | None = None,
) -> nn.Module | None:
    """A detector by name."""
    if not is_detector(name):
        return None
    return create_detector(
        name, num_classes=num_classes or 80, pretrained=checkpoint is None, checkpoint_path=checkpoint
    )


def describe(spec: TaskSpec, model: nn.Module, name: str) -> LoadedModel:
    """A detector with the preprocessing and classes of its `pretrained_cfg`."""
    assert isinstance(model, Detector)
    (classes, colors), cfg = published_classes(model), model.pretrained_cfg
    preprocess = (
        DetectionPreprocess.from_dict(cfg["preprocess"]) if "preprocess" in cfg else DetectionPreprocess()
    )
    ids = category_ids(classes or ())
    if "category_ids" in cfg:
        ids = read_ids(cfg["category_ids"], model.num_classes)
    return LoadedModel(spec, name, model, preprocess, classes, DetectionMetadata(colors, ids))


def recognize(root: str | Path) -> int:
    """How surely a folder holds images with annotated objects; see `TaskSpec.recognize`."""
    return 0 if recognize_layout(root) is None else 3


def forward(model: nn.Module) -> Any:
    """The `Detections` of each image."""
    assert isinstance(model, Detector)
    return model.predict


SPEC = TaskSpec(
    name="detect",
    title="object detection",
    section="detect",
    unused=CLASSIFICATION_ONLY,
    check_config=check_config,
    build=build_detect,
    forward=forward,
    load=load,
    create=create,
    describe=describe,
    evaluation=build_evaluation,
    predictor=DetectionPredictor,
    write=write_detections,
    report=build_report,
    check_data=check_objects,
    recognize=recognize,
    write_demo=write_demo,
)
