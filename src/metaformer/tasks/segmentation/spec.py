"""`TaskSpec` of semantic segmentation: what the rest of the library asks of it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import nn

from metaformer.config import TrainConfig
from metaformer.data.class_lists import read_names, read_palette
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.errors import ConfigError
from metaformer.factory import create_segmenter, is_segmenter
from metaformer.models.build import build_network
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.serialize import NON_NEGATIVE, POSITIVE_INT, Range, Text, check_ranges, decode
from metaformer.tasks.base import CLASSIFICATION_ONLY, LoadedModel, TaskSpec
from metaformer.tasks.dense import published_classes
from metaformer.tasks.segmentation.check import check_label_maps
from metaformer.tasks.segmentation.demo import write_demo
from metaformer.tasks.segmentation.evaluate import build_evaluation
from metaformer.tasks.segmentation.layouts import find_layout, has_label_maps
from metaformer.tasks.segmentation.predict import SegmentationPredictor
from metaformer.tasks.segmentation.report import build_report
from metaformer.tasks.segmentation.task import build_segment
from metaformer.tasks.segmentation.write import write_segmentations

RANGES: Final[Mapping[str, Range]] = {
    "segment.fpn_dim": POSITIVE_INT,
    "segment.head_dim": POSITIVE_INT,
    "segment.dropout": Range(0, 1, below=True),
    "segment.resize": POSITIVE_INT,
    "segment.size_divisor": POSITIVE_INT,
    "segment.cat_max_ratio": Range(0, 1, above=True),
    "segment.ohem": Range(0, 1, above=True),
    "segment.dice": NON_NEGATIVE,
    "segment.class_weights": Range(0, 1e9),
    "segment.window": POSITIVE_INT,
    "segment.stride": POSITIVE_INT,
    "segment.scales": Range(0, 100, above=True),
}


def check_config(config: TrainConfig) -> None:
    """Check the values of `segment`.

    Raises:
        ConfigError: the first that is out of range.
    """
    check_ranges(config, RANGES)
    low, high = config.segment.scale
    if not 0 < low <= high < math.inf:
        raise ConfigError(f"segment.scale is {config.segment.scale}: a smaller and a larger factor, above 0")
    if not config.segment.scales:
        raise ConfigError("segment.scales is empty: set 1 for a single scale")


def load(spec: TaskSpec, card: Mapping[str, Any]) -> LoadedModel:
    """A segmenter from a checkpoint's card, its weights random."""
    model = build_network(SegmenterConfig.from_dict(card["model"]))
    preprocess, classes = (
        DensePreprocess.from_dict(card["preprocess"]),
        read_names(card["classes"], model.num_classes),
    )
    colors, name = read_palette(card["palette"], len(classes)), decode(Text, card["name"], "name")
    return LoadedModel(spec, name, model, preprocess, classes, colors)


def create(
    name: str,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    data: tuple[str | Path, str] | None = None,
) -> nn.Module | None:
    """A segmenter by name."""
    if not is_segmenter(name):
        return None
    return create_segmenter(
        name, num_classes=num_classes or 150, pretrained=checkpoint is None, checkpoint_path=checkpoint
    )


def describe(spec: TaskSpec, model: nn.Module, name: str) -> LoadedModel:
    """A segmenter with the preprocessing, classes and palette of its `pretrained_cfg`."""
    assert isinstance(model, Segmenter)
    (classes, colors), cfg = published_classes(model), model.pretrained_cfg
    preprocess = DensePreprocess.from_dict(cfg["preprocess"]) if "preprocess" in cfg else DensePreprocess()
    return LoadedModel(spec, name, model, preprocess, classes, colors)


def recognize(root: str | Path) -> int:
    """How surely a folder holds images with label maps; see `TaskSpec.recognize`."""
    if find_layout(root) is None:
        return 0
    return 3 if has_label_maps(root) else 2


def forward(model: nn.Module) -> Any:
    """Logits (B, K, H/4, W/4), which evaluation and prediction resize."""
    assert isinstance(model, Segmenter)
    return model.forward_head


SPEC = TaskSpec(
    name="segment",
    title="semantic segmentation",
    section="segment",
    unused=CLASSIFICATION_ONLY,
    check_config=check_config,
    build=build_segment,
    forward=forward,
    load=load,
    create=create,
    describe=describe,
    evaluation=build_evaluation,
    predictor=SegmentationPredictor,
    write=write_segmentations,
    report=build_report,
    check_data=check_label_maps,
    recognize=recognize,
    write_demo=write_demo,
)
