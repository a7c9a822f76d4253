"""Training of semantic segmentation: data, network, loss and evaluation of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from metaformer.config import TrainConfig
from metaformer.data.dataset import Batch
from metaformer.data.loader import Stop
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError
from metaformer.factory import create_segmenter
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.tasks.base import StepContext, Task, load_initial_weights, loading
from metaformer.tasks.check import validate_splits, warnings_of
from metaformer.tasks.dense import backbone_config, check_split_classes, fitting_batch, typical_size
from metaformer.tasks.segmentation.check import label_findings, summarize, validate_label_maps
from metaformer.tasks.segmentation.dataset import (
    SegmentationDataset,
    SegmentationFolder,
    open_labeled,
    open_parts,
)
from metaformer.tasks.segmentation.draw import overlay
from metaformer.tasks.segmentation.evaluate import SegmentationEvaluation
from metaformer.tasks.segmentation.predict import run_inference
from metaformer.tasks.segmentation.transforms import train_transform

LARGEST_CROP = 512
"""Side of training crops, in pixels, at most, in runs whose sizes fit the data."""


class SegmentationTask(Task):
    """Semantic segmentation.

    Args:
        model: the network.
        name: its name.
        train: augmented training images with their label maps.
        evaluation: evaluation on the validation data.
        preprocess: preprocessing of evaluation and prediction.
    """

    task, metric = "segment", "miou"
    counted, count_format = "of the labeled pixels for each class", "{1:.3g}%"
    model: Segmenter
    train: SegmentationDataset
    preprocess: DensePreprocess

    def losses(self, model: nn.Module, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Losses of a batch of crops."""
        losses: dict[str, Tensor] = model(batch.images, batch.labels)
        return losses

    def count_classes(self, source: Any) -> Sequence[int]:
        """Pixels of each class."""
        pixels: tuple[int, ...] = source.pixels
        return pixels

    def metadata(self) -> dict[str, Any]:
        """Colors of the classes."""
        return {"palette": [list(color) for color in self.train.source.palette]}

    def draw_sample(self, image: Image.Image, target: Tensor) -> tuple[str, Image.Image]:
        """A sample with its label map over it; unlabeled pixels, padding too, are not painted."""
        return "", overlay(image, target.numpy(), self.train.source.palette)


def build_segment(config: TrainConfig, world: World, stop: Stop | None = None) -> SegmentationTask:
    """Build network, loss, data and evaluation on the run's device; `stop` interrupts evaluations.

    All label maps are validated first.

    Raises:
        ConfigError: values that do not match each other, the data or the network.
        DataError: another layout, or a label map that cannot be used.
        WeightsError: a checkpoint does not fit.
    """
    train, val = open_parts(config) or (
        open_labeled(config, config.data.train),
        open_labeled(config, config.data.val),
    )
    _check_classes(config, train, val)
    skip_bad = config.data.on_bad_image == "skip"
    infos = validate_splits(world, validate_label_maps, (train, skip_bad), (val, False))
    for folder, found in zip((train, val), infos, strict=True):
        folder.pixels = tuple(one.pixels for one in summarize("", folder.classes, found).per_class.values())
    warnings = [
        *warnings_of(label_findings(train, infos[0], training=True)),
        *warnings_of(label_findings(val, infos[1], training=False)),
    ]
    preprocess, options = evaluation_preprocess(config), config.segment
    torch.manual_seed(config.seed)
    augment = train_transform(
        crop=config.data.image_size,
        resize=options.resize,
        scale=options.scale,
        cat_max_ratio=options.cat_max_ratio,
        hflip=config.augment.hflip,
        photometric=options.photometric,
        ignore_index=train.ignore_index,
        mean=config.data.mean,
        std=config.data.std,
    )
    evaluation = SegmentationEvaluation(
        val,
        preprocess,
        inference=run_inference(config),
        **loading(config, world, stop),
    )
    name = f"{options.head}_{config.model.name}"
    task = SegmentationTask(
        build_segmenter(config, train),
        name,
        SegmentationDataset(train, augment, config.seed, preprocess.background),
        evaluation,
        preprocess,
    )
    task.warnings = warnings
    task.to(world.device)
    return task


def fit_data(config: TrainConfig) -> Mapping[str, Any]:
    """Sizes and batch that fit the training images: images at the median size, crops of its shorter side.

    Raises:
        DataError: another layout, or an image that cannot be read.
    """
    parts = open_parts(config)
    train = open_labeled(config, config.data.train) if parts is None else parts[0]
    longer, shorter = typical_size(lambda index: train.image(index).size, len(train))
    return {
        "segment.resize": (longer, shorter),
        "data.image_size": min(shorter, LARGEST_CROP),
        "data.batch_size": fitting_batch(config, len(train)),
    }


def evaluation_preprocess(config: TrainConfig) -> DensePreprocess:
    """Preprocessing of a run's evaluation."""
    longer, shorter = config.segment.resize or (None, None)
    return DensePreprocess(
        longer,
        shorter,
        config.segment.size_divisor,
        config.data.mean,
        config.data.std,
        background=config.data.background_color,
    )


def build_segmenter(config: TrainConfig, data: SegmentationFolder) -> Segmenter:
    """Build the network of a run, with its initial weights.

    Weights of a backbone leave neck and head initialized; those for other classes, the classifier.

    Raises:
        ConfigError: an unknown network or field, or a value out of range.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    options = config.segment
    model = create_segmenter(
        options.head,
        backbone=backbone_config(config.model, image_size=(config.data.image_size,) * 2),
        num_classes=len(data.classes),
        fpn_dim=options.fpn_dim,
        head_dim=options.head_dim,
        dropout=options.dropout,
        auxiliary=options.auxiliary,
        feature_norm=options.feature_norm,
        drop_path_rate=None,  # the configuration has it
    )
    model.criterion = SegmentationLoss(
        ignore_index=data.ignore_index,
        reduction=options.reduction,
        ohem=options.ohem,
        dice=options.dice,
        class_weights=options.class_weights,
    )
    load_initial_weights(model, config.model)
    return model


def _check_classes(config: TrainConfig, train: SegmentationFolder, val: SegmentationFolder) -> None:
    check_split_classes(config, train, val)
    classes, weights = len(train.classes), config.segment.class_weights
    if classes < 2:
        raise DataError(f"{train.folder}: only one class, {train.classes[0]!r}: training needs at least two")
    if weights is not None and len(weights) != classes:
        raise ConfigError(f"segment.class_weights has {len(weights)} numbers for {classes} classes")
