"""`TaskSpec` of semantic segmentation: what the rest of the library asks of it."""

import math
from collections.abc import Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Final

from metaformer.config import TrainConfig
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.errors import ConfigError
from metaformer.factory import is_segmenter
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.serialize import NON_NEGATIVE, POSITIVE_INT, Range, check_ranges
from metaformer.tasks import dense
from metaformer.tasks.base import TaskSpec
from metaformer.tasks.check import Certainty
from metaformer.tasks.demo import write_label_maps
from metaformer.tasks.segmentation.check import check_label_maps
from metaformer.tasks.segmentation.evaluate import build_evaluation
from metaformer.tasks.segmentation.explain import SegmenterExplain
from metaformer.tasks.segmentation.export import SegmenterExport
from metaformer.tasks.segmentation.layouts import find_layout, has_label_maps
from metaformer.tasks.segmentation.predict import SegmentationPredictor
from metaformer.tasks.segmentation.report import build_report
from metaformer.tasks.segmentation.task import build_segment, fit_data
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


def recognize(root: str | Path) -> Certainty:
    """How surely a folder holds images with label maps."""
    if find_layout(root) is None:
        return Certainty.NONE
    return Certainty.BY_FILES if has_label_maps(root) else Certainty.BY_FOLDERS


SPEC = TaskSpec(
    name="segment",
    title="semantic segmentation",
    section="segment",
    unused=dense.UNUSED,
    check_config=check_config,
    build=build_segment,
    forward=attrgetter("forward_head"),
    load=partial(dense.load, config=SegmenterConfig, preprocess=DensePreprocess),
    create=partial(dense.create, is_segmenter),
    describe=partial(dense.describe, preprocess=DensePreprocess),
    evaluation=build_evaluation,
    predictor=SegmentationPredictor,
    write=write_segmentations,
    export=SegmenterExport(),
    explain=SegmenterExplain(),
    report=build_report,
    fit_data=fit_data,
    check_data=check_label_maps,
    recognize=recognize,
    write_demo=write_label_maps,
)
