"""Semantic segmentation as a task."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from metaformer.config import TrainConfig
from metaformer.data.class_lists import class_list, palette, palette_for, read_palette
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.errors import ConfigError
from metaformer.factory import create_segmenter, is_segmenter
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.tasks.base import CLASSIFICATION_ONLY, LoadedModel, TaskSpec
from metaformer.tasks.segmentation.check import check_label_maps
from metaformer.tasks.segmentation.demo import write_demo
from metaformer.tasks.segmentation.evaluate import build_evaluation
from metaformer.tasks.segmentation.layouts import find_layout, has_label_maps
from metaformer.tasks.segmentation.predict import SegmentationPredictor
from metaformer.tasks.segmentation.report import build_report
from metaformer.tasks.segmentation.task import build_segment
from metaformer.tasks.segmentation.write import write_segmentations


def check_config(config: TrainConfig) -> None:
    """Check the values of `segment`.

    Raises:
        ConfigError: the first that is out of range.
    """
    plan = config.segment
    for field, value, least in (
        ("segment.fpn_dim", plan.fpn_dim, 1),
        ("segment.head_dim", 1 if plan.head_dim is None else plan.head_dim, 1),
        ("segment.size_divisor", plan.size_divisor, 1),
        ("segment.window", plan.window, 1),
        ("segment.stride", plan.stride, 1),
        ("segment.resize", 1 if plan.resize is None else min(plan.resize), 1),
    ):
        if value < least:
            raise ConfigError(f"{field} is {value}: it must be at least {least}")
    if not 0 < plan.scale[0] <= plan.scale[1] < math.inf:
        raise ConfigError(f"segment.scale is {plan.scale}: a smaller and a larger factor, both above 0")
    for field, number, low, high in (
        ("segment.dropout", plan.dropout, 0.0, 0.999),
        ("segment.cat_max_ratio", plan.cat_max_ratio, 1e-9, 1.0),
        ("segment.ohem", 1.0 if plan.ohem is None else plan.ohem, 1e-9, 1.0),
        ("segment.dice", plan.dice, 0.0, math.inf),
        *(("segment.scales", scale, 1e-9, 100.0) for scale in plan.scales),
        *(("segment.class_weights", weight, 0.0, 1e9) for weight in plan.class_weights or ()),
    ):
        if not (isinstance(number, int | float) and low <= number <= high):
            raise ConfigError(f"{field} is {number}: it must lie between {low:g} and {high:g}")
    if not plan.scales:
        raise ConfigError("segment.scales is empty: give 1 for the images' own size")


def load(spec: TaskSpec, card: Mapping[str, Any]) -> LoadedModel:
    """A segmenter from a checkpoint's card, its weights random."""
    model = Segmenter(SegmenterConfig.from_dict(card["model"]))
    preprocess, classes = DensePreprocess.from_dict(card["preprocess"]), tuple(card["classes"])
    colors = read_palette(card["palette"], len(classes))
    return LoadedModel(spec, str(card["name"]), model, preprocess, classes, colors)


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
    cfg = model.pretrained_cfg
    classes = tuple(cfg["label_names"]) if cfg.get("label_names") else None
    if classes is None and "data" in cfg:  # published: the data set's, unless trained for others
        names = class_list(str(cfg["data"])).names
        classes = names if len(names) == model.num_classes else None
    preprocess = DensePreprocess.from_dict(cfg["preprocess"]) if "preprocess" in cfg else DensePreprocess()
    colors = palette_for(classes) if classes else palette(model.num_classes)
    if "palette" in cfg:
        colors = read_palette(cfg["palette"], model.num_classes)
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
    folder="segmentation",
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
