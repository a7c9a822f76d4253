"""Semantic segmentation."""

from typing import Any

import torch
from torch import Tensor, nn

from metaformer.config import TrainConfig
from metaformer.data.dataset import Batch
from metaformer.data.loader import DATA_TIMEOUT, Stop
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.distributed import World
from metaformer.errors import ConfigError, DataError
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.tasks.base import StepContext, Task
from metaformer.tasks.initial_weights import backbone_config, load_initial_weights
from metaformer.tasks.segmentation.check import validate_label_maps
from metaformer.tasks.segmentation.dataset import SegmentationDataset, SegmentationFolder, open_segmentation
from metaformer.tasks.segmentation.evaluate import SegmentationEvaluation
from metaformer.tasks.segmentation.predict import run_inference
from metaformer.tasks.segmentation.transforms import train_transform
from metaformer.tasks.validate import validate_splits


class SegmentationTask(Task):
    """Semantic segmentation.

    Args:
        model: gives logits (B, K, H, W), or losses where it is also given label maps.
        name: what the model is called.
        train: augmented training images with their label maps.
        evaluation: the validation data.
        preprocess: how images become input when the model is used.
    """

    metric = "miou"
    model: Segmenter
    train: SegmentationDataset
    preprocess: DensePreprocess

    def losses(self, model: nn.Module, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Losses of a batch of crops."""
        losses: dict[str, Tensor] = model(batch.images, batch.labels)
        return losses

    def card(self) -> dict[str, Any]:
        """Architecture, classes with their colors, and preprocessing."""
        return {
            "task": "segment",
            "name": self.name,
            "model": self.model.config.to_dict(),
            "classes": list(self.train.pairs.classes),
            "palette": [list(color) for color in self.train.pairs.palette],
            "preprocess": self.preprocess.to_dict(),
        }


def build_segment(config: TrainConfig, world: World, stop: Stop | None = None) -> SegmentationTask:
    """Open the data and make model, loss and evaluation, all on the run's device; `stop` cuts evaluations.

    All label maps are looked at before anything is learned.

    Raises:
        ConfigError: values that do not fit each other, the data or the model.
        DataError: the data set is not laid out as it should be, or a label map cannot be used.
        WeightsError: a checkpoint does not fit.
    """
    train, val = (open_labeled(config, split) for split in (config.data.train, config.data.val))
    _check_classes(config, train, val)
    validate_splits(world, validate_label_maps, (train, config.data.on_bad_image == "skip"), (val, False))
    preprocess, plan = dense_preprocessing(config), config.segment
    torch.manual_seed(config.seed)
    augment = train_transform(
        crop=config.data.image_size,
        resize=plan.resize,
        scale=plan.scale,
        cat_max_ratio=plan.cat_max_ratio,
        hflip=config.augment.hflip,
        photometric=plan.photometric,
        ignore_index=train.ignore_index,
        mean=config.data.mean,
        std=config.data.std,
    )
    evaluation = SegmentationEvaluation(
        val,
        preprocess,
        inference=run_inference(config),
        workers=config.data.workers,
        pin_memory=world.device.type == "cuda",
        timeout=min(DATA_TIMEOUT, config.runtime.timeout),
        stop=stop,
    )
    name = f"{plan.head}_{config.model.name}"
    task = SegmentationTask(
        build_segmenter(config, train),
        name,
        SegmentationDataset(train, augment, config.seed),
        evaluation,
        preprocess,
    )
    task.to(world.device)
    return task


def open_labeled(config: TrainConfig, split: str) -> SegmentationFolder:
    """Open a split of a run's data set.

    Raises:
        DataError: it is not laid out as it should be.
    """
    plan = config.segment
    return open_segmentation(
        config.data.root,
        split,
        plan.layout,
        classes=plan.class_names,
        reduce_zero_label=plan.reduce_zero_label,
    )


def dense_preprocessing(config: TrainConfig) -> DensePreprocess:
    """How a run's images become input in evaluation."""
    longer, shorter = config.segment.resize or (None, None)
    return DensePreprocess(longer, shorter, config.segment.size_divisor, config.data.mean, config.data.std)


def build_segmenter(config: TrainConfig, data: SegmentationFolder) -> Segmenter:
    """Make the network for the classes of the data, from own or published weights where they are asked for.

    A file of a backbone leaves neck and head fresh; one of other classes gives everything but the last layer.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    from metaformer.factory import create_segmenter

    plan = config.segment
    model = create_segmenter(
        plan.head,
        backbone=backbone_config(config.model, image_size=(config.data.image_size,) * 2),
        num_classes=len(data.classes),
        fpn_dim=plan.fpn_dim,
        head_dim=plan.head_dim,
        dropout=plan.dropout,
        auxiliary=plan.auxiliary,
        feature_norm=plan.feature_norm,
        drop_path_rate=None,  # the configuration has it
    )
    model.criterion = SegmentationLoss(
        ignore_index=data.ignore_index,
        reduction=plan.reduction,
        ohem=plan.ohem,
        dice=plan.dice,
        class_weights=plan.class_weights,
    )
    load_initial_weights(model, config.model)
    return model


def _check_classes(config: TrainConfig, train: SegmentationFolder, val: SegmentationFolder) -> None:
    classes = len(train.classes)
    if train.classes != val.classes:
        raise DataError(f"{val.folder}: {len(val.classes)} classes, but {train.folder} has {classes} others")
    if classes < 2:
        raise DataError(f"{train.folder}: only one class, {train.classes[0]!r}: training needs at least two")
    if config.model.num_classes not in (None, classes):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, {train.folder} holds {classes} classes: "
            "leave the field out"
        )
    weights = config.segment.class_weights
    if weights is not None and len(weights) != classes:
        raise ConfigError(f"segment.class_weights has {len(weights)} numbers for {classes} classes")
